"""Any torch optimizer, run in other coordinates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_linf.functional.gathering import shard_like
from lightning_linf.optim.bundle import Bundle
from lightning_linf.optim.coordinates import Coordinates
from lightning_linf.reparam import BoundReparameterization, Reparameterization

OptimizerFactory = Callable[[Any], Optimizer]
_PREFIX = "phi."  # of the entries of a state in coordinates phi
_NOT_SHARED = ("params", "reparameterization")  # in a parameter group: each has its own


class Reparameterized(Optimizer):
    r"""Run any optimizer in coordinates :math:`\phi` of the weights :math:`\theta = A \phi`.

    At every step the inner optimizer gets the gradient :math:`A^\top g` and the point
    :math:`\phi = A^{-1} \theta`, and the weights move by :math:`A` times what it adds to
    :math:`\phi`. So the weights stay ordinary weights, before the first step to the last bit, may
    be changed by others between steps, and checkpoints load into an ordinary model.

    Gradient clipping, loss scaling and accumulation act on the gradients of the weights, before the
    map. Schedulers and others may change ``param_groups``, whose hyperparameters hold for phi.
    Parameter groups have hyperparameters of their own, so no map mixes them: each group has its own
    part of ``reparameterization``. Parameters that do not require grad at the start keep their
    coordinates, and so do those that ``reparameterization`` leaves out: the inner optimizer then
    steps them directly.

    A map that mixes tensors ("global") moves all tensors of a group at once; those without a
    gradient then count as having a gradient of zero. Other maps leave those alone, as torch does.

    Low-precision parameters have coordinates, and thus optimizer states, in float32. Between steps
    the tensors that the inner optimizer steps have no memory: their values mean nothing then.

    An optimizer that evaluates a closure must do so before it first moves, as those of torch do.

    Parameters may be sharded (DTensors, as of ``fully_shard``). The map is that of the whole
    tensors, so a step is that of one process up to rounding. The inner optimizer then steps phi
    sharded in the same way, and its state takes as much on a rank as without the map. During the
    step every rank gathers gradients, weights and phi, and computes the whole map: it sends about
    three times as much as ``fully_shard`` to gather the weights once, and holds whole vectors.
    Between steps phi keeps the memory of this rank's part. An inner optimizer that sets
    ``p.data`` cannot step sharded parameters: for DTensors, torch does not heed that.

    Args:
        params: As torch's optimizers take them: tensors, pairs of name and tensor, or groups.
        factory: Makes the inner optimizer of the parameters it is given (as flat or grouped as
            ``params``), such as ``lambda p: torch.optim.AdamW(p, lr=1e-3)``. It is not kept.
        reparameterization: The map A.

    Attributes:
        inner: The optimizer that ``factory`` made.
        reparameterization: The map A.

    Raises:
        ValueError: If a parameter is complex or flattened by ``FullyShardedDataParallel``, those of
            a group are on several devices, ``factory`` gives anything but an optimizer of the
            parameters it was given, or ``reparameterization`` is not one, or refuses them.
        RuntimeError: In ``step``, for sparse gradients, and if a parameter was frozen which the map
            would move; in ``add_param_group``.

    Source:
        Rotated Adam: Xie, Mohamadi & Li, arXiv:2410.08198. Cost of a step beside the inner one:
        three transforms, and about 5 numbers per parameter while it lasts, none between steps; of
        sharded parameters, on every rank.

    Example:
        >>> from lightning_linf import Rotation
        >>> module = torch.nn.Linear(3, 2)
        >>> optimizer = Reparameterized(
        ...     module.parameters(), lambda p: torch.optim.Adam(p, lr=0.1), Rotation(seed=0)
        ... )
        >>> module(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self, params: ParamsT, factory: OptimizerFactory, reparameterization: Reparameterization
    ) -> None:
        given: list[Any] = [params] if isinstance(params, Tensor) else list(params)
        is_grouped = bool(given) and isinstance(given[0], dict)
        self._is_complete = False
        super().__init__(params if isinstance(params, Tensor) else given, {})
        if not isinstance(reparameterization, Reparameterization):
            raise ValueError(
                "Reparameterized: expected `reparameterization` to be one, got "
                f"{reparameterization!r}. Give, say, Rotation('global')."
            )
        self.reparameterization = reparameterization
        self._bundles = self._make_bundles()
        phi_of = {
            theta: phi
            for bundle in self._bundles
            for theta, phi in zip(bundle.thetas, bundle.phis, strict=True)
        }
        # (theta, what the inner optimizer steps), in the order of the groups
        self._pairs = [
            (theta, phi_of.get(theta, theta))
            for group in self.param_groups
            for theta in group["params"]
        ]
        groups = self._inner_groups()
        self.inner = factory(groups if is_grouped else groups[0]["params"])
        self._check_inner()
        for bundle in self._bundles:
            bundle.forget()
        self.defaults = self.inner.defaults
        self._pull()
        for group in self.param_groups:  # saved with the state, whose coordinates it tells
            tensors = group["params"]
            mapped = sum(theta in phi_of for theta in tensors)
            group["reparameterization"] = (
                f"{mapped} of {len(tensors)} tensors in {reparameterization!r}"
            )
        self._is_complete = True

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of the inner optimizer.

        Args:
            closure: Evaluates the loss, calls backward and returns the loss.

        Returns:
            What the closure returns, or None.
        """
        self._push()
        try:
            for bundle in self._bundles:
                bundle.read()
            if closure is None:
                self._read_gradients()
                loss = self.inner.step()
            else:
                loss = self.inner.step(_Evaluation(self, closure))
            for bundle in self._bundles:
                bundle.write()
        finally:
            for bundle in self._bundles:
                bundle.forget()
        self._pull()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: made to be called by the base class only."""
        if self._is_complete:
            raise RuntimeError(
                "Reparameterized: expected all parameters at the start, got another group: the map "
                "is made for the tensors given then, and the state is in its coordinates. Make a "
                "new Reparameterized with all groups."
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Give the state, with the name of the map in every group.

        Entries in coordinates phi begin with ``phi.``, so that no other optimizer takes them for
        its own.
        """
        self.adopt_state()  # someone may have changed that of the inner optimizer
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that :meth:`state_dict` of an optimizer with the same map gave.

        Raises:
            ValueError: If the state is in other coordinates, or of other parameters.
        """
        state_dict = state_dict.copy()  # hooks may change it
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            theirs = saved.get("reparameterization", "none")
            if theirs != group["reparameterization"]:
                raise ValueError(
                    "Reparameterized: expected a state in the same coordinates, with "
                    f"{group['reparameterization']}, got {theirs}. Resume with the map and the "
                    "frozen parameters of the run that saved it, or change them with carry_state."
                )
        self.inner.load_state_dict(self._without_prefix(state_dict))  # casts to the dtypes of phi
        self._pull()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def adopt_state(self) -> None:
        """Show in ``state`` what somebody has changed in that of the inner optimizer."""
        theta_of = {phi: theta for theta, phi in self._pairs if phi is not theta}
        self.state.clear()
        for key, entry in self.inner.state.items():
            if key in theta_of:
                entry = {_PREFIX + name: value for name, value in entry.items()}
            self.state[theta_of.get(key, key)] = entry

    def to_phi(
        self, values: Mapping[Tensor, Tensor], *, squared: bool = False
    ) -> dict[Tensor, Tensor]:
        """Turn means of gradients, by parameter, into means of gradients with respect to phi.

        Args:
            values: By parameter, of its shape. Where a map mixes tensors, missing ones count as 0.
            squared: The values are means of squares: their expectation in phi, if the coordinates
                of the gradient are uncorrelated.

        Returns:
            By parameter, of its shape.
        """
        return self._transform(values, squared, lambda bundle: bundle.bound)

    def to_theta(
        self, values: Mapping[Tensor, Tensor], *, squared: bool = False
    ) -> dict[Tensor, Tensor]:
        """Do the inverse of :meth:`to_phi`; of means of squares, spread them back."""
        return self._transform(values, squared, lambda bundle: bundle.inverse)

    def coordinates(self, parameters: Sequence[Tensor]) -> Coordinates:
        """Give the map of these parameters, joined to one vector in this order.

        Raises:
            ValueError: If the map needs a parameter that is not among them.
        """
        return Coordinates(parameters, [(b.thetas, b.bound) for b in self._bundles])

    def _make_bundles(self) -> list[Bundle]:
        thetas = [theta for group in self.param_groups for theta in group["params"]]
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        selected = dict(
            zip(thetas, self.reparameterization.selects(names or None, len(thetas)), strict=True)
        )
        bundles = []
        for stream, group in enumerate(self.param_groups):
            mapped = [
                i
                for i, theta in enumerate(group["params"])
                if selected[theta] and theta.requires_grad
            ]
            if not mapped:
                continue
            chosen = [group["params"][i] for i in mapped]
            bound = self.reparameterization.bind(
                [theta.shape for theta in chosen],
                [group["param_names"][i] for i in mapped] if names else None,
                stream=stream,
            )
            with torch.no_grad():
                bundles.append(Bundle(chosen, bound))
        return bundles

    def _inner_groups(self) -> list[dict[str, Any]]:
        phis = iter(phi for _, phi in self._pairs)
        groups = []
        for group in self.param_groups:
            inner: dict[str, Any] = {k: v for k, v in group.items() if k != "param_names"}
            inner["params"] = [next(phis) for _ in group["params"]]
            if "param_names" in group:
                inner["params"] = list(zip(group["param_names"], inner["params"], strict=True))
            groups.append(inner)
        return groups

    def _check_inner(self) -> None:
        got: Any = None
        if isinstance(self.inner, Optimizer):
            got = [id(phi) for group in self.inner.param_groups for phi in group["params"]]
        if got != [id(phi) for _, phi in self._pairs] or len(self.inner.param_groups) != len(
            self.param_groups
        ):
            raise ValueError(
                "Reparameterized: expected `factory` to make a torch.optim.Optimizer of the "
                "parameters it is given, in their order and groups, got "
                f"{'one of others' if got is not None else type(self.inner).__name__}. "
                "Return, say, torch.optim.AdamW(params, lr=1e-3)."
            )

    def _read_gradients(self) -> None:
        for bundle in self._bundles:
            bundle.read_gradients(self.reparameterization.mixes_tensors)

    def _transform(
        self,
        values: Mapping[Tensor, Tensor],
        squared: bool,
        side: Callable[[Bundle], BoundReparameterization],
    ) -> dict[Tensor, Tensor]:
        result = dict(values)
        for bundle in self._bundles:
            present = [theta in values for theta in bundle.thetas]
            if not any(present):
                continue
            joined = bundle.join(values.get(t, torch.zeros_like(t)) for t in bundle.thetas)
            bound = side(bundle)
            changed = bound.apply_transpose_squared if squared else bound.apply_transpose
            parts = bundle.split(changed(joined))
            for theta, part, is_present in zip(bundle.thetas, parts, present, strict=True):
                if is_present or self.reparameterization.mixes_tensors:
                    result[theta] = shard_like(part, theta)
        return result

    def _push(self) -> None:
        """Give the inner optimizer the hyperparameters, which others may have changed."""
        if len(self.param_groups) != len(self.inner.param_groups):
            raise RuntimeError(
                f"Reparameterized: expected {len(self.inner.param_groups)} parameter groups, got "
                f"{len(self.param_groups)}. Make a new Reparameterized with all groups."
            )
        for ours, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({k: v for k, v in ours.items() if k not in _NOT_SHARED})

    def _pull(self) -> None:
        """Take over hyperparameters and states, which the inner optimizer may have changed."""
        for ours, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            ours.update({k: v for k, v in inner.items() if k not in _NOT_SHARED})
        self.adopt_state()

    def _without_prefix(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        keys = [key for saved in state_dict["param_groups"] for key in saved["params"]]
        mapped = {
            key for key, (theta, phi) in zip(keys, self._pairs, strict=False) if phi is not theta
        }
        state = dict(state_dict["state"])
        for key in mapped & state.keys():
            if not all(name.startswith(_PREFIX) for name in state[key]):
                raise ValueError(
                    "Reparameterized: expected a state in coordinates phi, got one of the "
                    f"parameters themselves ({', '.join(state[key])}), as of a run that went on "
                    "without the map. Load it into an optimizer without one, and change that by "
                    "carry_state."
                )
            state[key] = {name.removeprefix(_PREFIX): v for name, v in state[key].items()}
        return {**state_dict, "state": state}

    def __getstate__(self) -> dict[str, Any]:
        own = ("reparameterization", "inner", "_bundles", "_pairs", "_is_complete")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}


def has_foreign_state(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer without a map was given the state of one with a map."""
    return not isinstance(optimizer, Reparameterized) and any(
        "reparameterization" in group for group in optimizer.param_groups
    )


class _Evaluation:
    """A closure as the inner optimizer calls it: once, or again and again at other points."""

    def __init__(self, optimizer: Reparameterized, closure: Callable[[], Any]) -> None:
        self._optimizer = optimizer
        self._closure = closure
        self._is_first = True

    def __call__(self) -> Any:
        if not self._is_first:
            with torch.no_grad():
                for bundle in self._optimizer._bundles:
                    bundle.write()
        self._is_first = False
        with torch.enable_grad():
            loss = self._closure()
        with torch.no_grad():
            self._optimizer._read_gradients()
        return loss
