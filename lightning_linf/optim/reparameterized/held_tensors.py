"""What every rank holds of the tensors of a parameter group."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lightning_linf.distributed.sharing_ranks import boxes_by_rank, sharing
from lightning_linf.functional.holdings import Holdings
from lightning_linf.functional.strips import Strip, strips_of_box, total
from lightning_linf.reparam import BoundReparameterization


def on_shards_of(
    tensors: Sequence[Tensor], bound: BoundReparameterization
) -> BoundReparameterization:
    """Give a map of vectors of what this rank holds of tensors, flattened and joined.

    All ranks that share the tensors ask together.

    Raises:
        ValueError: If shards overlap, or parts of a tensor are on no rank.
    """
    all_to_all = sharing(tensors)
    if all_to_all is None:
        return bound
    ranks = all_to_all.ranks
    held = [
        [
            [strip for box in boxes for strip in strips_of_box(tensor.shape, *box)]
            for tensor, boxes in zip(tensors, of_rank, strict=True)
        ]
        for of_rank in boxes_by_rank(tensors, ranks)
    ]
    sizes = [tensor.numel() for tensor in tensors]
    for place, tensor in enumerate(tensors):
        _check(tensor, {tuple(of_rank[place]) for of_rank in held})
    rank = ranks.index(torch.distributed.get_rank())
    return bound.on_shards(Holdings(sizes, held, rank, all_to_all))


def _check(tensor: Tensor, shards: set[tuple[Strip, ...]]) -> None:
    runs = sorted(strip for strips in shards for strip in strips if strip.is_one_run())
    overlap = any(former.stop > latter.start for former, latter in pairwise(runs))
    if overlap or sum(map(total, shards)) != math.prod(tensor.shape):
        raise ValueError(
            "Reparameterized: expected every entry of a parameter in one shard, or in equal copies "
            f"of it, got a parameter of shape {tuple(tensor.shape)} with the placements "
            f"{getattr(tensor, 'placements', None)}. Shard it by fully_shard or parallelize_module."
        )
