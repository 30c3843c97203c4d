"""The base of optimizers that check parameter groups and states before they take them."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_linf.optim.kept_step import tensors_and_groups
from lightning_linf.optim.saved_state import (
    COUNTS,
    Saved,
    check_names,
    has_these_groups,
    saved_entries,
    with_own_names,
)

_ADDED_BY_TORCH = {"differentiable"}  # to the defaults, whenever a state is loaded or unpickled


class CheckedOptimizer(Optimizer):
    """An optimizer that is left as it was if it refuses a parameter group or a state.

    A subclass implements ``_prepare``, ``_check_group`` and ``_check_saved``. What it has prepared
    serves for all steps in which tensors lie where they lay: finding it takes longer than many a
    step takes on a GPU.
    """

    _kept: tuple[list[Hashable], list[Callable[[], None]]] | None = None

    # Hyperparameters that saved states of older versions lack, each with the value it had then.
    _added_options: ClassVar[dict[str, Any]]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step.

        Args:
            closure: Reevaluates the model, calls backward and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError: If a gradient is sparse, or groups that share a block do not agree.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for update in self._updates():
            update()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group.

        Args:
            param_group: As for :class:`torch.optim.Optimizer`.

        Raises:
            ValueError: As the constructor.
        """
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of the same parameters.

        Args:
            state_dict: What :meth:`state_dict` returned.

        Raises:
            ValueError: If it is that of another class, has moments of other shapes, blocks or order
                of named parameters, or is not sharded as the parameters are (``get_`` and
                ``set_optimizer_state_dict`` of torch convert it).
        """
        prepared: Saved = {}

        def before(_: Optimizer, final: Saved) -> Saved:
            prepared.update(self._prepared(final))
            return prepared

        # Registered last, so that hooks of the user, which may change the state, come before.
        hooks = [
            self.register_load_state_dict_pre_hook(before),
            self.register_load_state_dict_post_hook(
                lambda _: self._restore(prepared), prepend=True
            ),
        ]
        former = dict(vars(self))
        try:
            super().load_state_dict(state_dict)
        except BaseException:
            vars(self).update(former)
            raise
        else:
            self._kept = None  # else it would hold the former state until the next step
        finally:
            for hook in hooks:
                hook.remove()

    def _updates(self) -> list[Callable[[], None]]:
        """Give the calls that make a step: those of the last one, unless tensors have changed."""
        rests_on = None if torch.compiler.is_compiling() else tensors_and_groups(self)
        if rests_on is None:
            return self._prepare()
        if self._kept is None or self._kept[0] != rests_on:
            updates = self._prepare()
            rests_on = tensors_and_groups(self)  # with what state is new
            self._kept = None if rests_on is None else (rests_on, updates)
            return updates
        return self._kept[1]

    def _prepare(self) -> list[Callable[[], None]]:
        """Collect what a step reads and writes, and give calls that update all that have gradients.

        They read numbers and gradients where these lie at the time, and keep no gradient.
        """
        raise NotImplementedError

    def _check_group(self, group: dict[str, Any]) -> None:
        """Raise a ValueError for a parameter group with bad hyperparameters or parameters."""
        raise NotImplementedError

    def _check_saved(self, saved: Saved) -> None:
        """Raise a ValueError for a state whose entries are not those of the parameters."""
        raise NotImplementedError

    def _restore(self, saved: Saved) -> None:
        """Repair what torch has cast on loading. Default: nothing."""

    def _prepared(self, saved: Saved) -> Saved:
        """Check a state, and bring it into the form of today's states."""
        name, groups = type(self).__name__, self.param_groups
        if not has_these_groups(groups, saved):
            return saved  # which torch refuses
        expected = self.defaults.keys() - self._added_options.keys() - _ADDED_BY_TORCH
        for theirs in saved["param_groups"]:
            missing = expected - theirs.keys()
            if missing:
                raise ValueError(
                    f"{name}.load_state_dict: expected the state of an optimizer of this class, "
                    f"got one without {', '.join(sorted(missing))}. Change optimizers by "
                    "carry_state."
                )
        check_names(name, groups, saved)
        entries = {index: _with_counts(entry) for index, _, entry in saved_entries(groups, saved)}
        named_groups = with_own_names(groups, saved["param_groups"])
        saved = {
            **saved,
            "state": {**saved["state"], **entries},
            "param_groups": [{**self._added_options, **theirs} for theirs in named_groups],
        }
        self._check_saved(saved)
        return saved


def _with_counts(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Have counts as float32 tensors: they may be saved as numbers, and bfloat16 stops at 256."""
    counts = {
        key: torch.as_tensor(entry[key], dtype=torch.float32)
        for key in COUNTS
        if isinstance(entry.get(key), (Tensor, int, float))
    }
    return {**entry, **counts}
