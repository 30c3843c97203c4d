"""Blocks from the structure of a module: by the types of its submodules, not by their names."""

from collections.abc import Mapping
from typing import Literal

from torch import nn

from lightning_linf.partition.attention import FusedQKV, by_head
from lightning_linf.partition.layouts import Layout
from lightning_linf.partition.orientation import rows_or_columns
from lightning_linf.partition.pieces import Piece, owners, whole

PartitionName = Literal["coordinate", "row", "column", "head", "tensor", "module", "global"]


def structural(
    module: nn.Module,
    name: PartitionName,
    named: Mapping[str, nn.Parameter],
    output_dims: Mapping[str, int],
    fused_qkv: FusedQKV | None,
) -> list[Piece]:
    """Label and lay out ``named`` parameters of a module under one of the names of ``of``."""
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
