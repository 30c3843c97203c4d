"""Any torch optimizer, run in other coordinates."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_linf.optim.reparameterized.closure import closure_in_phi, global_step_hooks
from lightning_linf.optim.reparameterized.coordinates import Coordinates
from lightning_linf.optim.reparameterized.mapped_groups import (
    NOT_SHARED,
    add_groups,
    check_inner,
    check_known,
    map_groups,
)
from lightning_linf.optim.reparameterized.mapped_state import PREFIX, check_coordinates, for_inner
from lightning_linf.optim.saved_state import has_these_groups
from lightning_linf.reparam import Reparameterization

_MODES = ("train", "eval")


class Reparameterized(Optimizer):
    r"""Run any optimizer in coordinates :math:`\phi` of the weights :math:`\theta = A \phi`.

    .. math::
        \phi &\leftarrow A^{-1} \theta, \qquad g_\phi \leftarrow A^\top g_\theta \\
        \phi' &\leftarrow \text{inner step}(\phi, g_\phi) \\
        \theta &\leftarrow \theta + A (\phi' - \phi)

    The module's weights stay the weights :math:`\theta`: bit for bit the same before the first
    step, free to be changed by others between steps, and saved as those of any model.

    Gradient clipping, loss scaling and accumulation act on the gradients of the weights, before the
    map. Schedulers may change ``param_groups``, whose hyperparameters hold for phi. Since parameter
    groups have hyperparameters of their own, no map mixes them: each group, also one added later,
    has its own part of ``reparameterization``. Parameters that do not require grad when they are
    given, and those that ``reparameterization`` leaves out, are not mapped; the inner optimizer
    steps them directly.

    A map that mixes tensors ("global") moves all tensors of a group together, so a missing gradient
    counts as zero there. Under other maps a parameter without a gradient stays as it is. Parameters
    of low precision have coordinates, and so optimizer states, in float32. Between steps the
    tensors that the inner optimizer steps have no memory, and their values mean nothing.

    An inner optimizer that evaluates a closure must do so before it first moves, as torch's do. If
    it has ``train()`` and ``eval()``, as schedule-free ones, call them on this one: they move the
    weights. Hooks around the steps of all optimizers are called for this one alone.

    Parameters may be sharded (DTensors, as ``fully_shard`` and tensor parallelism make them). The
    map is that of the whole tensors, so a step equals that of a single process up to rounding. phi
    and the inner optimizer's state are sharded as the weights are, and ranks compute products of
    the map together, by exchanging shards: in a step a rank holds a few shards beside the weights,
    and sends up to 27 of them, however many ranks there are (benchmarks/sharded_rotation.py). Only
    maps of your own that do not say how gather whole vectors
    (:meth:`~lightning_linf.reparam.BoundReparameterization.on_shards`). Between steps, phi keeps
    the memory of this rank's part. An inner optimizer that sets ``p.data`` cannot be used: that has
    no effect on a DTensor.

    Args:
        params: As torch's optimizers take them: tensors, pairs of name and tensor, or groups.
        factory: A function that makes the inner optimizer of parameters, or of parameter groups if
            ``params`` are groups, such as ``lambda p: torch.optim.AdamW(p, lr=1e-3)``.
        reparameterization: The map A.

    Attributes:
        inner: The optimizer that ``factory`` made.
        reparameterization: The map A.

    Raises:
        ValueError: If a parameter is complex, lazy or flattened by ``FullyShardedDataParallel``,
            those of a group are on several devices, ``factory`` gives anything but an optimizer of
            the parameters it was given, or ``reparameterization`` is not one, or refuses them.
        RuntimeError: In ``step``, for sparse gradients, if a parameter was frozen which the map
            would move, or if parameter groups were replaced.

    Source:
        Adam in rotated coordinates: Xie, Mohamadi & Li, arXiv:2410.08198. Cost of a step beside the
        inner one: three products with the map, and memory for 3 numbers per parameter while it
        lasts.

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
        self,
        params: ParamsT,
        factory: Callable[[Any], Optimizer],
        reparameterization: Reparameterization,
    ) -> None:
        given: list[Any] = [params] if isinstance(params, Tensor) else list(params)
        is_grouped = bool(given) and isinstance(given[0], dict)
        super().__init__(params if isinstance(params, Tensor) else given, {})
        if not isinstance(reparameterization, Reparameterization):
            raise ValueError(
                "Reparameterized: expected `reparameterization` to be one, got "
                f"{reparameterization!r}. Give, say, Rotation('global')."
            )
        self.reparameterization = reparameterization
        groups, self._mapped, self._pairs = map_groups(reparameterization, self.param_groups)
        self.inner = factory(groups if is_grouped else groups[0]["params"])
        for mapped in self._mapped:
            mapped.free()
        check_inner(self.inner, len(self.param_groups), [phi for _, phi in self._pairs])
        self.defaults = self.inner.defaults
        self._take_from_inner()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step of the inner optimizer.

        Args:
            closure: Reevaluates the model, calls backward and returns the loss.

        Returns:
            What the closure returned, or None.
        """

        def inner_step() -> Any:
            with global_step_hooks() as hooks:  # which torch calls for this optimizer
                if closure is not None:
                    return self.inner.step(closure_in_phi(closure, self._mapped, hooks))
                for mapped in self._mapped:
                    mapped.read_gradients()
                return self.inner.step()

        return self._move_weights(inner_step)

    @torch.no_grad()
    def _move_weights(self, move_phi: Callable[[], Any]) -> Any:
        """Let the inner optimizer move phi, and the weights accordingly."""
        self._give_to_inner()
        try:
            for mapped in self._mapped:
                mapped.read_weights()
            result = move_phi()
            for mapped in self._mapped:
                mapped.write_weights()
        finally:
            for mapped in self._mapped:
                mapped.free()
        self._take_from_inner()
        return result

    def __getattr__(self, name: str) -> Any:
        """Give ``train`` and ``eval`` if the inner optimizer has them, as schedule-free ones do.

        They move the weights from one sequence of points to another, in coordinates phi.
        """
        move_phi = getattr(self.__dict__.get("inner"), name, None) if name in _MODES else None
        if move_phi is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return partial(self._move_weights, move_phi)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, with a part of the map of its own.

        Args:
            param_group: As for :class:`torch.optim.Optimizer`. Those of its parameters that require
                grad now are mapped.

        Raises:
            ValueError: As the constructor, or as the inner optimizer does.
        """
        super().add_param_group(param_group)
        if "inner" in self.__dict__:  # else the constructor is still adding groups
            try:
                self._map_new_groups()
            except BaseException:
                self.param_groups.pop()
                raise

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with a description of the map in every group.

        Names of entries in coordinates phi begin with ``phi.``: no plain optimizer has such.
        """
        self.adopt_state()  # someone may have changed that of the inner optimizer
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of the same parameters under the same map.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            ValueError: If the state is in other coordinates, or of parameters of other shapes or,
                if they are named, in another order. For inner optimizers that are neither torch's
                nor ours, shapes are compared as far as they can be. The optimizer is then left as
                it was.
        """
        state_dict = state_dict.copy()  # hooks may change it
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        self._map_new_groups()
        check_coordinates(self.param_groups, state_dict)
        if has_these_groups(self.param_groups, state_dict):
            state_dict = for_inner(self.inner, self.param_groups, self._pairs, state_dict)
        for mapped in self._mapped:
            mapped.match_weights()
        groups, inner = [dict(group) for group in self.param_groups], dict(vars(self.inner))
        try:
            self.inner.load_state_dict(state_dict)  # casts to the dtypes of phi
            self._take_from_inner()
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
        """Set ``state`` anew from that of the inner optimizer, after someone has changed that."""
        theta_of = {phi: theta for theta, phi in self._pairs if phi is not theta}
        self.state.clear()
        for key, entry in self.inner.state.items():
            if key in theta_of:
                entry = {PREFIX + name: value for name, value in entry.items()}
            self.state[theta_of.get(key, key)] = entry

    def to_phi(
        self, values: Mapping[Tensor, Tensor], *, squared: bool = False
    ) -> dict[Tensor, Tensor]:
        """Turn running means of gradients into those of gradients with respect to phi.

        Args:
            values: For each parameter a mean, in its shape. Under a map that mixes tensors, missing
                ones count as zero.
            squared: The values are means of squared gradients. The result is then what they are
                expected to be in phi if the coordinates of the gradient are uncorrelated.

        Returns:
            For each parameter the mean, in its shape.
        """
        result = dict(values)
        for mapped in self._mapped:
            result.update(mapped.transposed(values, mapped.bound, squared))
        return result

    def to_theta(
        self, values: Mapping[Tensor, Tensor], *, squared: bool = False
    ) -> dict[Tensor, Tensor]:
        """Turn running means of gradients with respect to phi into those of the weights'."""
        result = dict(values)
        for mapped in self._mapped:
            result.update(mapped.transposed(values, mapped.inverse, squared))
        return result

    def coordinates(self, parameters: Iterable[Tensor]) -> Coordinates:
        """Give the map for one vector: these parameters, flattened and joined in this order.

        Raises:
            ValueError: If the map needs a parameter that is not among them.
        """
        parts = [(each.thetas, each.whole_map) for each in self._mapped]
        return Coordinates(list(parameters), parts)

    def _map_new_groups(self) -> None:
        """Map groups that were added since: some callbacks append to ``param_groups`` directly."""
        known = len(self.inner.param_groups)
        check_known(self.param_groups, known, [theta for theta, _ in self._pairs])
        if len(self.param_groups) == known:
            return
        for group in self.param_groups[known:]:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
        groups, new, pairs = map_groups(self.reparameterization, self.param_groups, first=known)
        add_groups(self.inner, groups)
        for mapped in new:
            mapped.free()
        self._mapped += new
        self._pairs += pairs
        self._take_from_inner()

    def _give_to_inner(self) -> None:
        """Copy hyperparameters, which a scheduler may have changed, to the inner optimizer."""
        self._map_new_groups()
        for ours, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            inner.update({k: v for k, v in ours.items() if k not in NOT_SHARED})

    def _take_from_inner(self) -> None:
        """Copy hyperparameters and state, which the inner optimizer may have changed, from it."""
        for ours, inner in zip(self.param_groups, self.inner.param_groups, strict=True):
            ours.update({k: v for k, v in inner.items() if k not in NOT_SHARED})
        self.adopt_state()

    def __getstate__(self) -> dict[str, Any]:
        own = ("reparameterization", "inner", "_mapped", "_pairs")
        return {**super().__getstate__(), **{name: self.__dict__[name] for name in own}}
