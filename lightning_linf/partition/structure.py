"""Make the blocks of the built-in partitions from the types of a module's submodules."""

import re
from collections.abc import Mapping
from numbers import Integral
from typing import get_args

from torch import nn

from lightning_linf.argument_checks import check_choice
from lightning_linf.partition.attention import by_head
from lightning_linf.partition.layouts import Layout
from lightning_linf.partition.orientation import rows_or_columns
from lightning_linf.partition.pieces import Piece, owners, whole
from lightning_linf.partition_names import FusedQKV, PartitionName


def check_structure(caller: str, output_dims: object, fused_qkv: object) -> None:
    """Raise a ValueError unless :meth:`~lightning_linf.Partition.of` takes these arguments."""
    check_choice(caller, "fused_qkv", fused_qkv, get_args(FusedQKV), or_none=True)
    if output_dims is not None and not _are_dims_by_pattern(output_dims):
        raise ValueError(
            f"{caller}: expected `output_dims` to give dimensions by regular expressions, got "
            f"{output_dims!r}. Write, say, {{'router': 0}}."
        )


def structural(
    module: nn.Module,
    name: PartitionName,
    named: Mapping[str, nn.Parameter],
    output_dims: Mapping[str, int],
    fused_qkv: FusedQKV | None,
) -> list[Piece]:
    """Lay out the ``named`` parameters of a module in the blocks of a built-in partition."""
    if name == "coordinate":
        return [(None, Layout((p.numel(),), (0,))) for p in named.values()]
    if name == "tensor":
        return [(None, whole(p.shape)) for p in named.values()]
    if name == "global":
        return [(name, whole(p.shape)) for p in named.values()]
    if name == "head":
        heads = by_head(module, {id(p) for p in named.values()}, fused_qkv)
        return [(None, heads.get(id(p), whole(p.shape))) for p in named.values()]
    owned = owners(module)
    if name == "module":
        return [(id(owned[id(p)][0].module), whole(p.shape)) for p in named.values()]
    return [(None, layout) for layout in rows_or_columns(name, named, owned, output_dims)]


def _are_dims_by_pattern(value: object) -> bool:
    if not isinstance(value, Mapping):
        return False
    try:
        for pattern in value:
            re.compile(pattern)
    except (TypeError, re.error):
        return False
    return all(isinstance(dim, Integral) for dim in value.values())
