"""Any torch optimizer, run in other coordinates."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_linf.distributed.gathering import shard_like
from lightning_linf.optim.reparameterized.coordinates import Coordinates
from lightning_linf.optim.reparameterized.mapped_groups import NOT_SHARED, map_groups
from lightning_linf.optim.reparameterized.mapped_state import PREFIX, check_coordinates, for_inner
from lightning_linf.optim.reparameterized.mapped_tensors import MappedTensors
from lightning_linf.optim.reparameterized.step_hooks import StepHooks, global_step_hooks
from lightning_linf.optim.saved_state import has_these_groups
from lightning_linf.reparam import BoundReparameterization, Reparameterization

OptimizerFactory = Callable[[Any], Optimizer]
_MODES = ("train", "eval")


class Reparameterized(Optimizer):
    r"""Run any optimizer in coordinates :math:`\phi` of the weights :math:`\theta = A \phi`.

    At every step the inner optimizer gets the gradient :math:`A^\top g` and the point
    :math:`\phi = A^{-1} \theta`, and the weights move by :math:`A` times what it adds to
    :math:`\phi`. So the weights stay ordinary weights, before the first step to the last bit, may
    be changed by others between steps, and checkpoints load into an ordinary model.

    Gradient clipping, loss scaling and accumulation act on the gradients of the weights, before the
    map. Schedulers and others may change ``param_groups``, whose hyperparameters hold for phi.
    Parameter groups have hyperparameters of their own, so no map mixes them: each group has its own
    part of ``reparameterization``, also one that is added later. Parameters that do not require
    grad when they are given keep their coordinates, and so do those that ``reparameterization``
    leaves out: the inner optimizer then steps them directly.

    A map that mixes tensors ("global") moves all tensors of a group at once; those without a
    gradient then count as having a gradient of zero. Other maps leave those alone, as torch does.

    Low-precision parameters have coordinates, and thus optimizer states, in float32. Between steps
    the tensors that the inner optimizer steps have no memory: their values mean nothing then.

    An optimizer that evaluates a closure must do so before it first moves, as those of torch do.
    ``train()`` and ``eval()`` of a schedule-free one move the weights, too: call them here. Hooks
    for the steps of all optimizers are called for this one, not for the inner one.

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
        ValueError: If a parameter is complex, lazy or flattened by ``FullyShardedDataParallel``,
            those of a group are on several devices, ``factory`` gives anything but an optimizer of
            the parameters it was given, or ``reparameterization`` is not one, or refuses them.
        RuntimeError: In ``step``, for sparse gradients, and if a parameter was frozen which the map
            would move, or groups were replaced.

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
        self._bundles: list[MappedTensors] = []
        self._pairs: list[tuple[Tensor, Tensor]] = []  # theta, and what the inner optimizer steps
        groups, bundles, pairs = map_groups(reparameterization, self.param_groups)
        self.inner = factory(groups if is_grouped else groups[0]["params"])
        self._keep(bundles, pairs)
        self._check_inner()
        self.defaults = self.inner.defaults
        self._pull()
        self._is_complete = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of the inner optimizer.

        Args:
            closure: Evaluates the loss, calls backward and returns the loss.

        Returns:
            What the closure returns, or None.
        """

        def move() -> Any:
            with global_step_hooks() as hooks:  # which are called for this optimizer
                if closure is not None:
                    return self.inner.step(_Evaluation(self, closure, hooks))
                self._read_gradients()
                return self.inner.step()

        return self._in_coordinates(move)

    def __getattr__(self, name: str) -> Any:
        """Give ``train`` and ``eval`` if the inner optimizer has them, as schedule-free ones do.

        They move the weights from one sequence of points to another, in coordinates phi.
        """
        move = getattr(self.__dict__.get("inner"), name, None) if name in _MODES else None
        if move is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return partial(self._in_coordinates, move)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with a part of the map of their own.

        Args:
            param_group: As for :class:`torch.optim.Optimizer`. Of its parameters, those that
                require grad now get coordinates phi.

        Raises:
            ValueError: As the constructor, or as the inner optimizer does.
        """
        super().add_param_group(param_group)
        if self._is_complete:
            try:
                self._add_groups()
            except BaseException:
                self.param_groups.pop()
                raise

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
            ValueError: If the state is in other coordinates, or of other parameters: of other
                shapes, or another order of named ones. The optimizer then is as it was. Of an
                inner optimizer that is not torch's or ours shapes are only compared in their order.
        """
        state_dict = state_dict.copy()  # hooks may change it
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        self._add_groups()
        check_coordinates(self.param_groups, state_dict)
        if has_these_groups(self.param_groups, state_dict):
            state_dict = for_inner(self.inner, self.param_groups, self._pairs, state_dict)
        for bundle in self._bundles:
            bundle.follow()
        groups, inner = [dict(group) for group in self.param_groups], dict(vars(self.inner))
        try:
            self.inner.load_state_dict(state_dict)  # casts to the dtypes of phi; refuses the rest
            self._pull()
            for post_hook in self._optimizer_load_state_dict_post_hooks.values():
                post_hook(self)
        except BaseException:
            vars(self.inner).update(inner)
            for group, former in zip(self.param_groups, groups, strict=True):
                group.clear()
                group.update(former)
            self.adopt_state()
            raise

    def adopt_state(self) -> None:
        """Show in ``state`` what somebody has changed in that of the inner optimizer."""
        theta_of = {phi: theta for theta, phi in self._pairs if phi is not theta}
        self.state.clear()
        for key, entry in self.inner.state.items():
            if key in theta_of:
                entry = {PREFIX + name: value for name, value in entry.items()}
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

    @torch.no_grad()
    def _in_coordinates(self, move: Callable[[], Any]) -> Any:
        """Let the inner optimizer move phi, and the weights with them."""
        self._push()
        try:
            for bundle in self._bundles:
                bundle.read()
            result = move()
            for bundle in self._bundles:
                bundle.write()
        finally:
            for bundle in self._bundles:
                bundle.forget()
        self._pull()
        return result

    def _keep(self, bundles: list[MappedTensors], pairs: list[tuple[Tensor, Tensor]]) -> None:
        for bundle in bundles:
            bundle.forget()
        self._bundles += bundles
        self._pairs += pairs

    def _add_groups(self) -> None:
        """Take up further parameter groups, which some callbacks set directly, too."""
        known = len(self.inner.param_groups)
        ours = [id(p) for group in self.param_groups[:known] for p in group["params"]]
        if ours != [id(theta) for theta, _ in self._pairs]:
            raise RuntimeError(
                f"Reparameterized: expected the {known} parameter groups that it was made of, and "
                "perhaps others after them, got other parameters in them. Make a new "
                "Reparameterized with all groups."
            )
        if len(self.param_groups) == known:
            return
        before = dict(vars(self.inner)), list(self.inner.param_groups)
        for group in self.param_groups[known:]:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        groups, bundles, pairs = map_groups(self.reparameterization, self.param_groups, first=known)
        try:
            for group in groups:
                self.inner.add_param_group(group)
        except BaseException:
            vars(self.inner).update(before[0])
            self.inner.param_groups[:] = before[1]
            raise
        self._keep(bundles, pairs)
        self._pull()

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
        side: Callable[[MappedTensors], BoundReparameterization],
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
        self._add_groups()
        for ours, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({k: v for k, v in ours.items() if k not in NOT_SHARED})

    def _pull(self) -> None:
        """Take over hyperparameters and states, which the inner optimizer may have changed."""
        for ours, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            ours.update({k: v for k, v in inner.items() if k not in NOT_SHARED})
        self.adopt_state()

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

    def __init__(
        self, optimizer: Reparameterized, closure: Callable[[], Any], hooks: StepHooks
    ) -> None:
        self._optimizer = optimizer
        self._closure = closure
        self._hooks = hooks  # of all optimizers, such as others that the closure steps
        self._is_first = True

    def __call__(self) -> Any:
        if not self._is_first:
            with torch.no_grad():
                for bundle in self._optimizer._bundles:
                    bundle.write()
        self._is_first = False
        with torch.enable_grad(), global_step_hooks(self._hooks):
            loss = self._closure()
        with torch.no_grad():
            self._optimizer._read_gradients()
        return loss
