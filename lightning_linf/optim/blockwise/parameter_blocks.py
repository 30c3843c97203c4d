"""Find the blocks that the parameters of an optimizer fall into."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter

from lightning_linf.distributed.shards import is_flattened
from lightning_linf.optim.blockwise.block_set import BlockSet
from lightning_linf.partition import Partition
from lightning_linf.partition.layouts import IndexLayout, Layout
from lightning_linf.partition.pieces import nothing, whole
from lightning_linf.partition_names import ModuleFreeName, PartitionName

_NAMES = get_args(ModuleFreeName)


def check_partition(optimizer: str, partition: object) -> None:
    """Raise a ValueError unless it is a Partition, or the name of one that needs no module."""
    if isinstance(partition, Partition) or partition in _NAMES:
        return
    if partition in get_args(PartitionName):
        remedy = f"Build Partition.of(module, {partition!r}) and pass it."
    else:
        remedy = "See Partition.of, Partition.by_regex and Partition.by_function."
    raise ValueError(
        f"{optimizer}: expected `partition` to be one of {', '.join(map(repr, _NAMES))} or a "
        f"Partition, got {partition!r}. {remedy}"
    )


def check_params(optimizer: str, params: Iterable[Tensor]) -> None:
    """Raise a ValueError for parameters of which no mean square by block can be taken."""
    for p in params:
        if isinstance(p, UninitializedParameter):
            got, remedy = "a lazy one", "Run the module once before you build the optimizer"
        elif is_flattened(p):
            got, remedy = "one flattened by FullyShardedDataParallel", "Shard it by fully_shard"
        elif p.is_complex():
            got, remedy = f"{p.dtype}", "Optimize its real and imaginary parts"
        else:
            continue
        raise ValueError(
            f"{optimizer}: expected initialized, real parameters in their own shapes, got {got}. "
            f"{remedy}."
        )


def find_block_sets(
    optimizer: str, groups: Sequence[Mapping[str, Any]], partition: str | Partition
) -> list[BlockSet]:
    """Sort parameters into block sets, in the order of the first parameter of each.

    Raises:
        ValueError: If the partition is a Partition of other parameters.
    """
    params = [(p, index) for index, group in enumerate(groups) for p in group["params"]]
    layouts = _layouts(optimizer, groups, [p for p, _ in params], partition)
    found: dict[object, BlockSet] = {}
    for (p, index), layout in zip(params, layouts, strict=True):
        if p.numel() == 0:
            found[p] = BlockSet(nothing(), [p], [index])
            continue
        if layout is None:  # frozen when the partition was made; if trained later, it is one block
            found[p] = BlockSet(whole(p.shape), [p], [index])
            continue
        blocks = found.setdefault(layout.first, BlockSet(layout, [], []))
        blocks.params.append(p)
        blocks.groups.append(index)
    for blocks in found.values():
        blocks.shard()
    return list(found.values())


def groups_that_share(block_sets: Iterable[BlockSet]) -> set[tuple[int, int]]:
    """Find pairs of parameter groups that have parameters in the same block."""
    return {
        (blocks.groups[0], other)
        for blocks in block_sets
        for other in blocks.groups
        if other != blocks.groups[0]
    }


def check_shared_options(
    optimizer: str, groups: Sequence[Mapping[str, Any]], pairs: Iterable[tuple[int, int]]
) -> None:
    """Raise a ValueError if groups that share a block differ in what its step size depends on."""
    for pair in pairs:
        ours, theirs = (_shared_options(groups[index]) for index in pair)
        if ours != theirs:
            raise ValueError(
                f"{optimizer}: expected parameter groups {pair[0]} and {pair[1]}, which share a "
                f"block, to agree in beta2, eps, eps_inside and capturable, got {ours} and "
                f"{theirs}. Set them alike, or use a partition in which they share none."
            )


def _shared_options(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return group["betas"][1], group["eps"], group["eps_inside"], group["capturable"]


def _layouts(
    optimizer: str,
    groups: Sequence[Mapping[str, Any]],
    params: list[Tensor],
    partition: str | Partition,
) -> Sequence[Layout | IndexLayout | None]:
    """Give the layout of every parameter; those with the same ``first`` share their block."""
    shapes = [p.shape for p in params]
    if isinstance(partition, Partition):
        names = [name for group in groups for name in group.get("param_names", ())]
        if names:
            return _by_name(optimizer, names, params, partition)
        return _in_order(optimizer, shapes, partition)
    keep = (0,) if partition == "coordinate" else ()
    return [
        Layout((shape.numel(),), keep, first=0 if partition == "global" else index)
        for index, shape in enumerate(shapes)
    ]


def _by_name(
    optimizer: str, names: Sequence[str], params: Sequence[Tensor], partition: Partition
) -> Sequence[Layout | IndexLayout | None]:
    expected = dict(zip(partition.names, partition.shapes, strict=True))
    for name, p in zip(names, params, strict=True):
        shape = p.shape
        if expected.get(name) != shape and (name in expected or p.requires_grad):
            there = f"has {tuple(expected[name])} there" if name in expected else "is not in it"
            raise ValueError(
                f"{optimizer}: expected parameters of {partition!r}, got {name} of shape "
                f"{tuple(shape)}, which {there}. Build the Partition from the module whose "
                "named_parameters() you pass, after freezing."
            )
    missing = [name for name in expected if name not in set(names)]
    if missing:
        raise ValueError(
            f"{optimizer}: expected all parameters of {partition!r}, got all but "
            f"{', '.join(missing[:5])}{' and others' if missing[5:] else ''}. Build the Partition "
            "with `parameters=` set to those that you optimize."
        )
    layouts = dict(zip(partition.names, partition.layouts, strict=True))
    return [layouts.get(name) for name in names]


def _in_order(
    optimizer: str, shapes: list[torch.Size], partition: Partition
) -> Sequence[Layout | IndexLayout]:
    if shapes == partition.shapes:
        return partition.layouts
    pairs = zip(shapes, partition.shapes, strict=False)
    place = next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(shapes), len(partition.shapes))
    )
    raise ValueError(
        f"{optimizer}: expected the {len(partition.shapes)} parameters of {partition!r} in its "
        f"order, got {len(shapes)} without names, of which number {place} differs in shape. Pass "
        "model.named_parameters(), or parameter groups of named parameters."
    )
