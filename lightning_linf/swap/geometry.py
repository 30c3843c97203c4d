"""The choice of a geometry: which optimizer, on which blocks, in which coordinates."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from types import NoneType
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_linf.optim.adasgd import AdaSGD
from lightning_linf.optim.blockwise.blockwise_adam import BlockwiseAdam
from lightning_linf.optim.reparameterized.reparameterized import Reparameterized
from lightning_linf.optim.signum import Signum
from lightning_linf.partition import Partition
from lightning_linf.partition.structure import check_structure
from lightning_linf.partition_names import FusedQKV, ModuleFreeName, PartitionName
from lightning_linf.reparam import Reparameterization, Rotation
from lightning_linf.reparam.rotation import RotationScope
from lightning_linf.swap.groups import (
    OF_ONE_CLASS,
    OF_ONE_OPTIMIZER,
    arguments_of,
    has_two_betas,
    named_groups,
    translated,
)

OptimizerName = Literal["adam", "adamw", "sgd", "adasgd", "blockwise_adam", "signum"]
_CLASSES: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "adasgd": AdaSGD,
    "blockwise_adam": BlockwiseAdam,
    "signum": Signum,
}
_NEED_NO_MODULE = get_args(ModuleFreeName)
_LEARNING_RATES = {
    "lr",
    "initial_lr",
    "max_lr",
    "min_lr",
    "swa_lr",
}  # there, by optimizers and schedulers


@dataclass(frozen=True)
class Geometry:
    """A choice of optimizer, blocks and coordinates, to be made of an optimizer that there is.

    Parameter groups, learning rates, momentum and betas are those of the optimizer that is
    replaced, as far as the new one has them: beta1 and a momentum above 0 stand for each other.
    Other than two betas (Adan, AdEMAMix) may mean anything: the new optimizer then has its
    defaults, and the log says so. Weight decay keeps its number, but for Adam, SGD and most others
    it is a part of the gradient (L2), for AdamW, BlockwiseAdam, AdaSGD and Signum decoupled; the
    log says if that changes. Hooks registered on an optimizer and attributes of its own are not
    taken over.

    Args:
        optimizer: A name, a class, or a function of parameter groups that makes an optimizer. A
            function gets the groups with their hyperparameters; it is refused if it sets others,
            which would have no effect. Default: the class that there is.
        partition: Blocks of "blockwise_adam" (or of a class with this argument): a name as in
            :meth:`~lightning_linf.Partition.of`, or a Partition of the module. Default: that of the
            optimizer that there is, if it is of this class, else that of the class, "tensor".
        rotation: Coordinates in which the optimizer runs: a scope of
            :class:`~lightning_linf.Rotation`, or any reparameterization; each parameter group has
            its own part, so "global" does not mix groups. Default: the parameters' own, also if
            the optimizer that there is has others.
        rotation_strength: Of a rotation given by its scope: from 0, none, to 1, full.
        rotation_seed: Of a rotation given by its scope.
        lr: Learning rate of the first group before any schedule (with those that set it, such as
            OneCycleLR, the first of the schedule; with ReduceLROnPlateau, the present one); the
            others, and a schedule's, keep their ratio to it. Default: unchanged.
        options: Hyperparameters of the new optimizer, for all groups.
        output_dims: Of a partition "row" or "column", as in :meth:`~lightning_linf.Partition.of`.
        fused_qkv: Of a partition "head", as there.

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
        kind = self.optimizer
        if isinstance(kind, str) and kind not in _CLASSES:
            raise ValueError(
                f"Geometry: expected `optimizer` to be one of {', '.join(map(repr, _CLASSES))}, a "
                f"class or a function, got {kind!r}."
            )
        if kind is not None and not isinstance(kind, str) and not callable(kind):
            raise ValueError(
                "Geometry: expected `optimizer` to be a name, a class or a function of parameter "
                f"groups, got {kind!r}. An optimizer that exists already cannot be swapped in."
            )
        names = (None, *get_args(PartitionName))
        if not isinstance(self.partition, Partition) and self.partition not in names:
            raise ValueError(
                "Geometry: expected `partition` to be one of "
                f"{', '.join(map(repr, get_args(PartitionName)))} or a Partition, got "
                f"{self.partition!r}."
            )
        if self.partition is not None:
            chosen = self.kind()
            if chosen is None or "partition" not in arguments_of(chosen):
                raise ValueError(
                    "Geometry: expected an optimizer with blocks beside `partition`, got "
                    f"{kind!r}. Choose optimizer='blockwise_adam'."
                )
        for argument, value, only in (
            ("output_dims", self.output_dims, ("row", "column")),
            ("fused_qkv", self.fused_qkv, ("head",)),
        ):
            if value is not None and self.partition not in only:
                raise ValueError(
                    f"Geometry: expected `{argument}` beside partition="
                    f"{' or '.join(map(repr, only))}, got {value!r} beside {self.partition!r}. "
                    "Leave it out, or make the Partition with it."
                )
        check_structure("Geometry", self.output_dims, self.fused_qkv)
        is_scope = isinstance(self.rotation, str)
        if not isinstance(self.rotation, (str, Reparameterization, NoneType)):
            raise ValueError(
                "Geometry: expected `rotation` to be a scope or a reparameterization, got "
                f"{self.rotation!r}. Give a scope such as 'global', or a Rotation."
            )
        if not is_scope and (self.rotation_strength, self.rotation_seed) != (1.0, 0):
            raise ValueError(
                "Geometry: expected `rotation_strength` and `rotation_seed` beside a `rotation` "
                f"given by its scope, got rotation={self.rotation!r}. Give a scope such as "
                "'global', or set them in your Rotation."
            )
        if is_scope:
            self.reparameterization()  # refuses what Rotation refuses
        self._check_options()
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise ValueError(
                f"Geometry: expected `lr` > 0 and finite, got {self.lr}. Leave it out to keep the "
                "learning rates."
            )

    def kind(self) -> type[Optimizer] | None:
        """Give the class of optimizer, if one is chosen by class or name."""
        if isinstance(self.optimizer, str):
            return _CLASSES[self.optimizer]
        return self.optimizer if isinstance(self.optimizer, type) else None

    def reparameterization(self) -> Reparameterization | None:
        """Give the map of coordinates, if any."""
        if not isinstance(self.rotation, str):
            return self.rotation
        return Rotation(self.rotation, seed=self.rotation_seed, strength=self.rotation_strength)

    def lr_factor(self, old: Optimizer) -> float:
        """Give the factor by which ``lr`` changes the learning rates of an optimizer."""
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
        """Give the arguments, for a checkpoint, or None if they are more than names and numbers."""
        arguments = {f.name: getattr(self, f.name) for f in fields(self)}
        arguments["options"] = dict(self.options)
        if self.output_dims is not None:
            arguments["output_dims"] = dict(self.output_dims)
        return arguments if _is_plain(arguments) else None

    def describe(self) -> str:
        """Say in a few words what is chosen."""
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
            old: The optimizer to replace, which is left as it is.
            module: Whose parameters they are: tells their names, and their blocks.

        Raises:
            ValueError: If the new optimizer refuses the parameters or hyperparameters.
        """
        former = _inner(old)
        kind = type(former) if self.optimizer is None else self.kind()
        groups = named_groups(old, module)
        if kind is None:
            factory = self._heard(groups)
        else:
            factory = self._maker(kind, old, module)
            groups = [translated(group, kind, type(former)) for group in groups]
            groups = [{k: v for k, v in g.items() if k not in self.options} for g in groups]
        coordinates = self.reparameterization()
        new = (
            factory(groups)
            if coordinates is None
            else Reparameterized(groups, factory, coordinates)
        )
        if not isinstance(new, Optimizer):
            raise ValueError(
                "Geometry: expected `optimizer` to make a torch.optim.Optimizer of parameter "
                f"groups, got {type(new).__name__}. Return, say, torch.optim.SGD(groups)."
            )
        if _split(old) != _split(new):
            raise ValueError(
                "Geometry: expected an optimizer of the same parameters in the same groups, got "
                f"another split by {type(new).__name__}. Return, say, torch.optim.SGD(groups)."
            )
        factor = self.lr_factor(old)
        of_former = arguments_of(type(former)).keys() | former.defaults.keys()
        for theirs, ours in zip(old.param_groups, new.param_groups, strict=True):
            for key in theirs.keys() - ours.keys() - of_former - OF_ONE_OPTIMIZER:
                ours[key] = theirs[key]  # initial_lr and what else schedulers and users keep there
            for key in _LEARNING_RATES & ours.keys() if factor != 1.0 else ():
                ours[key] = ours[key] * factor
        had_names = any("param_names" in group for group in old.param_groups)
        if not had_names and not isinstance(getattr(_inner(new), "partition", None), Partition):
            for group in (*new.param_groups, *_inner(new).param_groups):
                group.pop("param_names", None)  # or groups that others add would need names, too
        return new

    def _check_options(self) -> None:
        chosen = self.kind()
        if "lr" in self.options or "partition" in self.options:
            raise ValueError(
                "Geometry: expected `lr` and `partition` as arguments, got "
                f"{', '.join(sorted({'lr', 'partition'} & self.options.keys()))} in `options`. "
                "Write Geometry(..., lr=0.1)."
            )
        known = self.options.keys() if chosen is None else arguments_of(chosen).keys()
        unknown = self.options.keys() - known
        if chosen is not None and unknown:
            raise ValueError(
                f"Geometry: expected `options` that {chosen.__name__} has, got "
                f"{', '.join(sorted(unknown))}. It has "
                f"{', '.join(sorted(known - {'lr', 'partition'}))}."
            )

    def _heard(self, groups: list[dict[str, Any]]) -> Callable[[Any], Any]:
        """Call the user's function, and refuse hyperparameters of it that no group would heed."""
        assert self.optimizer is not None
        assert not isinstance(self.optimizer, (str, type))
        function = self.optimizer
        for group in groups:
            for key in OF_ONE_CLASS & group.keys():
                del group[key]
            if not has_two_betas(group):  # of which nobody knows what the new optimizer's are
                group.pop("betas", None)
            group.update(self.options)

        def factory(params: Any) -> Any:
            optimizer = function(params)
            defaults = getattr(optimizer, "defaults", {})
            for key, parameter in arguments_of(type(optimizer)).items():
                value = defaults.get(key, parameter.default)
                kept = [group[key] for group in groups if key in group]
                is_new = key not in self.options and not (key == "lr" and self.lr is not None)
                if is_new and value != parameter.default and kept and value not in kept:
                    raise ValueError(
                        f"Geometry: expected a function that takes `{key}` from the parameter "
                        f"groups, which have {kept[0]}, got {value} set in it, which has no "
                        f"effect. Set it by {'`lr`' if key == 'lr' else '`options`'}."
                    )
            return optimizer

        return factory

    def _maker(
        self,
        kind: type[Optimizer],
        old: Optimizer,
        module: nn.Module,
    ) -> Callable[[Any], Optimizer]:
        former = _inner(old)
        # As defaults they hold for groups that are added later, and are checked by the class.
        values = {"params": None, **former.defaults}
        hyperparameters = translated(values, kind, type(former))
        hyperparameters = {k: v for k, v in hyperparameters.items() if k in arguments_of(kind)}
        if self.lr is not None and "lr" in hyperparameters:
            hyperparameters["lr"] = self.lr
        partition = self.partition
        if partition is None and type(former) is kind and "partition" in arguments_of(kind):
            partition = getattr(former, "partition", None)
        if isinstance(partition, str) and partition not in _NEED_NO_MODULE:
            parameters = [p for group in old.param_groups for p in group["params"]]
            partition = Partition.of(
                module,
                partition,
                parameters=parameters,
                output_dims=self.output_dims,
                fused_qkv=self.fused_qkv,
            )
        if partition is not None:
            hyperparameters["partition"] = partition
        return partial(kind, **{**hyperparameters, **self.options})


def _inner(optimizer: Optimizer) -> Optimizer:
    return optimizer.inner if isinstance(optimizer, Reparameterized) else optimizer


def _split(optimizer: Optimizer) -> list[list[int]]:
    return [[id(p) for p in group["params"]] for group in optimizer.param_groups]


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return type(value) in (str, int, float, bool, NoneType)
