"""Which partitions a measurement is of."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_linf.functional.vector_shards import shards_of_vectors
from lightning_linf.partition import Partition
from lightning_linf.partition.placement import PlacementError
from lightning_linf.partition.sharded import ShardedPartition
from lightning_linf.partition_names import (
    DEFAULT,
    ENDS,
    SPECTRAL,
    FusedQKV,
    MeasuredName,
    PartitionName,
)


def choose_partitions(
    module: nn.Module,
    partitions: Sequence[PartitionName | Partition],
    parameters: Collection[nn.Parameter] | None = None,
    *,
    output_dims: Mapping[str, int] | None = None,
    fused_qkv: FusedQKV | None = None,
) -> list[Partition]:
    """Make partitions of names, and add the two ends of the scale where they are missing.

    Args:
        module: Not inside a landscape, where it has other parameters.
        partitions: Names or partitions of the module.
        parameters: Of the trainable parameters only these. Default: all.
        output_dims: Of those made of names, as in :meth:`~lightning_linf.Partition.of`.
        fused_qkv: The same.

    Raises:
        ValueError: If two have one name, or a parameter has no place.
    """
    given = {choice.name if isinstance(choice, Partition) else choice for choice in partitions}
    chosen: dict[str, Partition] = {}
    for choice in (*partitions, *(name for name in ENDS if name not in given)):
        partition = (
            choice
            if isinstance(choice, Partition)
            else Partition.of(
                module,
                choice,
                parameters=parameters,
                output_dims=output_dims,
                fused_qkv=fused_qkv,
            )
        )
        ends = {"coordinate": partition.num_params, "global": 1}
        num_blocks = ends.get(partition.name, partition.num_blocks)
        if partition.name in chosen or partition.num_blocks != num_blocks:
            raise ValueError(
                "measure_geometry: expected partitions of different names, and only those of one "
                f'entry or of one block to be called "coordinate" or "global", got {choice!r} '
                f"beside {list(chosen)}. Give it another `name`."
            )
        chosen[partition.name] = partition
    return list(chosen.values())


def without_spectral(
    choices: Sequence[MeasuredName | Partition],
) -> tuple[list[PartitionName | Partition], bool]:
    """Give the choices that are partitions, and whether the spectral geometry is asked for.

    Raises:
        ValueError: If a partition is called "spectral".
    """
    kept: list[PartitionName | Partition] = []
    for choice in choices:
        if isinstance(choice, Partition) and choice.name == SPECTRAL:
            raise ValueError(
                'measure_geometry: expected no partition to be called "spectral", the geometry of '
                f"Muon, got {choice!r}. Give it another `name`."
            )
        if isinstance(choice, Partition) or choice != SPECTRAL:
            kept.append(choice)
    return kept, len(kept) < len(choices)


def default_partitions(
    module: nn.Module, structure: Mapping[str, Any]
) -> tuple[list[Partition], dict[str, str]]:
    """Make those of the default that a module has.

    Args:
        module: Not inside a landscape, where it has other parameters.
        structure: Arguments of :meth:`~lightning_linf.Partition.of`.

    Returns:
        The partitions, and an entry ``left_out`` for the report's ``settings`` if a parameter has
        no place in one.

    Raises:
        ValueError: If an argument has a wrong value.
    """
    made, reasons = [], []
    for name in DEFAULT:
        try:
            made.append(Partition.of(module, name, **structure))
        except PlacementError as error:
            reasons.append(f"{name}: {error}")
    return made, {"left_out": " ".join(reasons)} if reasons else {}


def on_shards(partitions: Sequence[Partition], device: torch.device) -> list[Partition]:
    """Give partitions of the vectors that are here: of their shards, where vectors are shards."""
    shards = shards_of_vectors()
    if shards is None:
        return list(partitions)
    return [ShardedPartition(partition.whole, shards, device) for partition in partitions]
