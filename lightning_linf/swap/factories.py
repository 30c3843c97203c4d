"""Functions that make the new optimizer of parameter groups, for a chosen class or function."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer

from lightning_linf.partition import Partition
from lightning_linf.swap.groups import arguments_of, translated


def from_class(
    kind: type[Optimizer],
    former: Optimizer,
    partition: str | Partition | None,
    lr: float | None,
    options: Mapping[str, Any],
) -> Callable[[Any], Optimizer]:
    """Make a factory of a class, whose defaults are those of the former optimizer.

    As defaults, hyperparameters hold for parameter groups that are added later, too, and are
    checked by the class.
    """
    hyperparameters = translated({"params": None, **former.defaults}, kind, type(former))
    hyperparameters = {k: v for k, v in hyperparameters.items() if k in arguments_of(kind)}
    if lr is not None and "lr" in hyperparameters:
        hyperparameters["lr"] = lr
    if partition is not None:
        hyperparameters["partition"] = partition
    return partial(kind, **{**hyperparameters, **options})


def from_function(
    function: Callable[[Any], Any], groups: Sequence[Mapping[str, Any]], adjustable: set[str]
) -> Callable[[Any], Any]:
    """Make a factory of a user's function, which refuses hyperparameters set in that function.

    Parameter groups come with hyperparameters, so a value that the function sets itself, as in
    ``lambda groups: torch.optim.SGD(groups, momentum=0.5)``, would be ignored without a word.

    Args:
        function: The user's function of parameter groups.
        groups: The groups that it will get.
        adjustable: Hyperparameters that the user has chosen beside the function, so that the groups
            have the chosen values.
    """

    def factory(params: Any) -> Any:
        optimizer = function(params)
        defaults = getattr(optimizer, "defaults", {})
        for key, parameter in arguments_of(type(optimizer)).items():
            value = defaults.get(key, parameter.default)
            kept = [group[key] for group in groups if key in group]
            is_set = key not in adjustable and value != parameter.default
            if is_set and kept and value not in kept:
                raise ValueError(
                    f"Geometry: expected a function that takes `{key}` from the parameter "
                    f"groups, which have {kept[0]}, got {value} set in it, which has no "
                    f"effect. Set it by {'`lr`' if key == 'lr' else '`options`'}."
                )
        return optimizer

    return factory
