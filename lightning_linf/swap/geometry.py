"""The choice of a geometry: which optimizer, on which blocks, in which coordinates."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from numbers import Real
from types import NoneType
from typing import Any, get_args

from torch import nn
from torch.optim import Optimizer

from lightning_linf.optim import MuonWithAdamW, Reparameterized
from lightning_linf.partition import Partition, hidden_matrices
from lightning_linf.partition.structure import check_structure
from lightning_linf.partition_names import FusedQKV, ModuleFreeName, PartitionName
from lightning_linf.reparam import Reparameterization, Rotation
from lightning_linf.reparam.rotation import RotationScope
from lightning_linf.swap.factories import from_class, from_function
from lightning_linf.swap.groups import (
    arguments_of,
    inner_of,
    keep_other_entries,
    named_groups,
    of_any_class,
    scale_learning_rates,
    translated,
)
from lightning_linf.swap.optimizer_names import OPTIMIZERS, OptimizerName

_NEED_NO_MODULE = get_args(ModuleFreeName)
# Whether it is kept; what was expected; what we got; what to do.
_Rule = tuple[bool, str, object, str]


@dataclass(frozen=True)
class Geometry:
    """A choice of optimizer, blocks and coordinates, to replace an existing optimizer by.

    The new optimizer has the parameter groups, learning rates, momentum and betas of the one that
    it replaces, as far as its class has them; between a class with momentum and one with betas,
    a momentum above 0 becomes beta1, and the other way. If there are other than two betas (as in
    Adan and AdEMAMix), nobody knows what they mean: the new optimizer then has its defaults, and
    the log says so. Weight decay keeps its number; it is decoupled in AdamW and our optimizers, and
    a part of the gradient (L2) in Adam, SGD and most others; the log says if that changes. "muon"
    steps hidden matrices by Muon (:func:`~lightning_linf.partition.hidden_matrices` lists them;
    ``options={"matrices": names}`` chooses others) and the rest by AdamW, at AdamW's rates. Hooks
    registered on the old optimizer, and attributes that it was given, are not taken over.

    Args:
        optimizer: A name, a class, or a function that makes an optimizer of parameter groups. A
            function gets groups with hyperparameters; setting others itself would have no effect,
            and is refused. Default: the class of the old optimizer.
        partition: Blocks of "blockwise_adam", or of a class with this argument: a name as in
            :meth:`~lightning_linf.Partition.of`, or a Partition of the module. Default: that of the
            old optimizer if it is of the same class, else the class's own default, "tensor".
        rotation: The coordinates in which the optimizer runs: a scope of
            :class:`~lightning_linf.Rotation`, or any reparameterization. Each parameter group has
            its own part of it, so "global" does not mix groups. Default: those of the weights, also
            if the old optimizer has others.
        rotation_strength: Strength of a rotation given by its scope, from 0 (none) to 1 (full).
        rotation_seed: Seed of a rotation given by its scope.
        lr: Learning rate of the first group before a scheduler scales it (under OneCycleLR, which
            sets it, the first of the schedule; under ReduceLROnPlateau, the present one). All other
            rates, also those that schedulers keep, change in proportion. Default: none does.
        options: Hyperparameters of the new optimizer, for all groups.
        output_dims: For partitions "row" and "column", as in :meth:`~lightning_linf.Partition.of`.
        fused_qkv: For the partition "head", as there.

    Raises:
        ValueError: If a name is unknown, or arguments contradict each other.

    Example:
        >>> Geometry("blockwise_adam", partition="row", rotation="tensor").describe()
        "BlockwiseAdam(row) under Rotation(scope='tensor', seed=0, strength=1.0, only=None)"
    """

    optimizer: OptimizerName | type[Optimizer] | Callable[[Any], Optimizer] | None = None
    partition: PartitionName | Partition | None = None
    rotation: RotationScope | Reparameterization | None = None
    rotation_strength: float = 1.0
    rotation_seed: int = 0
    lr: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    output_dims: Mapping[str, int] | None = field(default=None, hash=False)
    fused_qkv: FusedQKV | None = None

    def __post_init__(self) -> None:
        for is_kept, expected, got, remedy in (*self._rules(), *self._rules_of_options()):
            if not is_kept:
                raise ValueError(f"Geometry: expected {expected}, got {got}. {remedy}".rstrip())
        check_structure("Geometry", self.output_dims, self.fused_qkv)
        self.reparameterization()  # Rotation raises a ValueError for what it cannot be

    def _rules(self) -> Iterable[_Rule]:
        kind, partition, rotation = self.optimizer, self.partition, self.rotation
        names, partitions = (", ".join(map(repr, x)) for x in (OPTIMIZERS, get_args(PartitionName)))
        is_partition = isinstance(partition, Partition)
        is_default = (self.rotation_strength, self.rotation_seed) == (1.0, 0)
        dims, order = self.output_dims, self.fused_qkv
        make_it = "Leave it out, or make the Partition with it."
        return (
            (not isinstance(kind, str) or kind in OPTIMIZERS,
             f"`optimizer` to be one of {names}, a class or a function", repr(kind), ""),
            (kind is None or isinstance(kind, str) or callable(kind),
             "`optimizer` to be a name, a class or a function of parameter groups", repr(kind),
             "An optimizer that exists already cannot be swapped in."),
            (is_partition or partition in (None, *get_args(PartitionName)),
             f"`partition` to be one of {partitions} or a Partition", repr(partition), ""),
            (partition is None or "partition" in self._arguments(),
             "an optimizer with blocks beside `partition`", repr(kind),
             "Choose optimizer='blockwise_adam'."),
            (dims is None or partition in ("row", "column"),
             "`output_dims` beside partition='row' or 'column'",
             f"{dims!r} beside {partition!r}", make_it),
            (order is None or partition == "head",
             "`fused_qkv` beside partition='head'", f"{order!r} beside {partition!r}", make_it),
            (isinstance(rotation, (str, Reparameterization, NoneType)),
             "`rotation` to be a scope or a reparameterization", repr(rotation),
             "Give a scope such as 'global', or a Rotation."),
            (isinstance(rotation, str) or is_default,
             "`rotation_strength` and `rotation_seed` beside a `rotation` given by its scope",
             f"rotation={rotation!r}",
             "Give a scope such as 'global', or set them in your Rotation."),
            (self.lr is None or (isinstance(self.lr, Real) and 0 < self.lr < math.inf),
             "`lr` > 0 and finite", repr(self.lr), "Leave it out to keep the learning rates."),
        )  # fmt: skip

    def _rules_of_options(self) -> Iterable[_Rule]:
        own = {"lr", "partition"} & self.options.keys()
        known = self._arguments().keys()
        unknown = self.options.keys() - known
        kind = self.kind()
        name = "" if kind is None else kind.__name__
        return (
            (not own, "`lr` and `partition` as arguments", f"{', '.join(sorted(own))} in `options`",
             "Write Geometry(..., lr=0.1)."),
            (kind is None or not unknown, f"`options` that {name} has", ', '.join(sorted(unknown)),
             f"It has {', '.join(sorted(known - {'lr', 'partition'}))}."),
        )  # fmt: skip

    def _arguments(self) -> dict[str, inspect.Parameter]:
        """Give the arguments of the new class, or none if a function makes the optimizer."""
        kind = self.kind()
        return {} if kind is None else arguments_of(kind)

    def kind(self) -> type[Optimizer] | None:
        """Give the class of the new optimizer, or None unless it is chosen by class or name."""
        if isinstance(self.optimizer, str):
            return OPTIMIZERS.get(self.optimizer)
        return self.optimizer if isinstance(self.optimizer, type) else None

    def reparameterization(self) -> Reparameterization | None:
        """Give the map to the coordinates of the weights, or None if the optimizer runs in them."""
        if not isinstance(self.rotation, str):
            return self.rotation
        return Rotation(self.rotation, seed=self.rotation_seed, strength=self.rotation_strength)

    def lr_factor(self, old: Optimizer) -> float:
        """Give the factor by which all learning rates of an optimizer change if ``lr`` is set."""
        if self.lr is None:
            return 1.0
        first = old.param_groups[0]
        base = float(first.get("initial_lr", first["lr"]))
        if base == 0:
            raise ValueError(
                "Geometry: expected a first group with a learning rate above 0 to set `lr` by, got "
                "0. Set the rates in configure_optimizers."
            )
        return self.lr / base

    def to_plain(self) -> dict[str, Any] | None:
        """Give the arguments for a checkpoint, or None unless they are names and numbers."""
        arguments = {f.name: getattr(self, f.name) for f in fields(self)}
        arguments["options"] = dict(self.options)
        if self.output_dims is not None:
            arguments["output_dims"] = dict(self.output_dims)
        return arguments if _is_plain(arguments) else None

    def describe(self) -> str:
        """Describe the choice in a few words."""
        if self.optimizer is None:
            text = "the same optimizer"
        else:
            made_by = getattr(self.optimizer, "func", self.kind() or self.optimizer)  # of a partial
            text = getattr(made_by, "__name__", type(made_by).__name__)
        if self.partition is not None:
            name = self.partition if isinstance(self.partition, str) else self.partition.name
            dims = None if self.output_dims is None else dict(self.output_dims)
            how = [f", {each!r}" for each in (dims, self.fused_qkv) if each is not None]
            text += f"({name}{''.join(how)})"
        coordinates = self.reparameterization()
        return text if coordinates is None else f"{text} under {coordinates!r}"

    def make(self, old: Optimizer, module: nn.Module) -> Optimizer:
        """Make the chosen optimizer of the parameter groups of another one.

        Args:
            old: The optimizer to replace. It is not changed.
            module: The module whose parameters it has, for their names and blocks.

        Raises:
            ValueError: If the new optimizer refuses the parameters or hyperparameters.
        """
        former = inner_of(old)
        kind = type(former) if self.optimizer is None else self.kind()
        groups = named_groups(old, module)
        factory: Callable[[Any], Any]
        if kind is None:
            assert self.optimizer is not None
            assert not isinstance(self.optimizer, (str, type))
            groups = [{**of_any_class(group), **self.options} for group in groups]
            adjustable = {*self.options, *(() if self.lr is None else ("lr",))}
            factory = from_function(self.optimizer, groups, adjustable)
        else:
            partition = self._partition(kind, old, module)
            options = self._options(kind, former, module)
            factory = from_class(kind, former, partition, self.lr, options)
            groups = [translated(group, kind, type(former)) for group in groups]
            groups = [{k: v for k, v in g.items() if k not in self.options} for g in groups]
        coordinates = self.reparameterization()
        if coordinates is None:
            new = factory(groups)
        else:
            new = Reparameterized(groups, factory, coordinates)
        problem = None
        if not isinstance(new, Optimizer):
            problem = "`optimizer` to make a torch.optim.Optimizer of parameter groups, got"
        elif _split(old) != _split(new):
            problem = "the same parameters in the same groups, got another split by"
        if problem is not None:
            raise ValueError(
                f"Geometry: expected {problem} {type(new).__name__}. Return, say, "
                "torch.optim.SGD(groups)."
            )
        if _maximizes(old) and "maximize" not in inner_of(new).defaults:
            raise ValueError(
                "Geometry: expected an optimizer with `maximize`, which the former one has set, "
                f"got {type(inner_of(new)).__name__}, which would minimize. Choose another, or "
                "negate the loss."
            )
        keep_other_entries(old, new)
        scale_learning_rates(new, self.lr_factor(old))
        had_names = any("param_names" in group for group in old.param_groups)
        by_name = isinstance(getattr(inner_of(new), "partition", None), Partition)
        if not (had_names or by_name or isinstance(inner_of(new), MuonWithAdamW)):
            # With names there, torch would refuse groups without names that are added later.
            for group in (*new.param_groups, *inner_of(new).param_groups):
                group.pop("param_names", None)
        return new

    def _partition(
        self, kind: type[Optimizer], old: Optimizer, module: nn.Module
    ) -> Partition | str | None:
        """Give the chosen partition, or that of the old optimizer, for a class that has one."""
        former, partition = inner_of(old), self.partition
        if partition is None and type(former) is kind and "partition" in arguments_of(kind):
            partition = getattr(former, "partition", None)
        if isinstance(partition, str) and partition not in _NEED_NO_MODULE:
            return Partition.of(
                module,
                partition,
                parameters=[p for group in old.param_groups for p in group["params"]],
                output_dims=self.output_dims,
                fused_qkv=self.fused_qkv,
            )
        return partition

    def _options(
        self, kind: type[Optimizer], former: Optimizer, module: nn.Module
    ) -> Mapping[str, Any]:
        """Give the chosen hyperparameters, and to Muon the names of its matrices."""
        if not issubclass(kind, MuonWithAdamW) or "matrices" in self.options:
            return self.options
        known = former.matrices if isinstance(former, MuonWithAdamW) else hidden_matrices(module)
        return {**self.options, "matrices": known}


def check_geometry(caller: str, geometry: object) -> None:
    """Raise a ValueError unless it is a Geometry."""
    if not isinstance(geometry, Geometry):
        raise ValueError(
            f"{caller}: expected a Geometry, got {geometry!r}. Write, say, Geometry('adam')."
        )


def _split(optimizer: Optimizer) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


def _maximizes(optimizer: Optimizer) -> bool:
    return any(group.get("maximize") for group in optimizer.param_groups)


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return type(value) in (str, int, float, bool, NoneType)
