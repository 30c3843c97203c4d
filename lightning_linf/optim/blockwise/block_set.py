"""Parameters that have second moments in common, and their blocks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_linf.distributed.shards import is_sharded, sum_over_ranks
from lightning_linf.optim.blockwise.shard_layout import shard_layout
from lightning_linf.partition.layouts import IndexLayout, Layout

# Squares added up at once on the CPU, where a sum of 3e7 in float32 loses up to 0.3 %.
_PART = 2**16


@dataclass
class Unit:
    """Parameters whose second moments are one vector of numbers.

    One parameter with blocks of its own, or several that are one block together. Methods take and
    give parts of sharded parameters, gradients and moments, those of this rank.
    """

    layout: Layout | IndexLayout  # of the first parameter; any others have the same block
    params: list[Tensor]
    groups: list[int]  # of each parameter, the number of its parameter group
    sizes: Tensor | None = None  # (blocks,): of an IndexLayout
    labels: Tensor | None = None  # (blocks of the part,): the block of the tensor

    @property
    def owner(self) -> Tensor:
        """The parameter whose state holds the second moments."""
        return self.params[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the second moments: float32, or wider if a parameter is."""
        dtype = torch.float32
        for p in self.params:
            dtype = torch.promote_types(dtype, p.dtype)
        return dtype

    @property
    def state_shape(self) -> torch.Size:
        """That of the second moments: the parameter's if every entry is a block."""
        return self.owner.shape if self.is_identity else torch.Size([self.num_blocks])

    def __post_init__(self) -> None:
        self.num_blocks = self.layout.num_blocks
        self.is_whole = self.num_blocks == 1
        self.is_identity = self.layout.is_identity
        self.is_sharded = self.spans_ranks = False

    def shard(self) -> None:
        """Lay out this rank's part, once all parameters are known."""
        self.is_sharded = any(map(is_sharded, self.params))
        if not self.is_sharded:
            return
        self.spans_ranks = not self.is_identity
        self.is_whole = self.is_whole and self.spans_ranks
        p, layout = self.owner, self.layout
        if is_sharded(p) and not self.is_whole:  # then it is the only one
            self.layout, self.labels = shard_layout(layout, p)
            if isinstance(self.layout, IndexLayout):
                self.sizes = layout.counts(p.device)

    def move_index(self) -> None:
        """Have the index where the parameter is: a step must not copy it each time."""
        device = self.owner.device
        if self.labels is not None:
            self.labels = self.labels.to(device)
        if isinstance(self.layout, IndexLayout):
            if self.sizes is None:
                self.sizes = self.layout.counts(device)
            if self.sizes.device != device or self.layout.index.device != device:
                self.sizes = self.sizes.to(device)
                self.layout = replace(self.layout, index=self.layout.index.to(device))

    def norms(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        """Root of :meth:`size` times the mean square of each block of one gradient: (blocks,).

        Of a sharded one, what this rank's part adds to it, for the blocks of the part.
        """
        layout = self.layout
        if self.is_whole:
            return _norm(g, dtype)
        if layout.is_identity:
            return g.to(dtype).reshape(-1)
        if isinstance(layout, IndexLayout):
            assert self.sizes is not None
            sums = layout.block_sum(g.to(dtype).square().reshape(-1))
            return sums.div_(self.sizes).sqrt_()
        last = len(layout.view) - 1
        rest = [dim for dim in range(last + 1) if dim not in layout.keep]
        parts = g.reshape(layout.view)
        if g.is_cpu and last in layout.keep:  # ten times as fast as norms across rows
            return parts.to(dtype).square().sum(rest).sqrt_().view(-1)
        norms: Tensor = torch.linalg.vector_norm(parts, dim=rest, dtype=dtype)
        return norms.view(-1)

    def joint_norms(self, norms: Sequence[Tensor], like: Tensor) -> Tensor:
        """Norms of the blocks from those of one or several gradients: (blocks,)."""
        if len(norms) == 1:
            return norms[0]
        joint: Tensor = torch.linalg.vector_norm(
            torch.cat([each.to(like.device) for each in norms])
        )
        return joint.view(1)

    def size(self, grads: Sequence[Tensor]) -> float:
        """Entries in a block of these gradients; 1 if that differs, and :meth:`norms` divides."""
        if self.is_identity or (self.sizes is not None and not self.is_whole):
            return 1.0
        return sum([g.numel() for g in grads]) / self.num_blocks

    def total(self, values: Tensor) -> Tensor:
        """Sum over the blocks of this rank's part that are of one block: (blocks,)."""
        if self.labels is None:
            return values
        return values.new_zeros(self.num_blocks).index_add_(0, self.labels, values)

    def mean(self, params: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Mean over each block of numbers for the entries of some of the parameters: (blocks,)."""
        if self.is_identity:
            return values[0].reshape(-1)
        if self.spans_ranks:
            sums = [self.total(self._block_sum(each)) for each in values]
            sizes = self.size(params) if self.sizes is None else self.sizes
            return torch.stack(sum_over_ranks(params, sums)).sum(0) / sizes
        if self.is_whole:
            return torch.cat([each.reshape(-1) for each in values]).mean().view(1)
        return self._block_sum(values[0]) / self.layout.counts(values[0].device)

    def _block_sum(self, values: Tensor) -> Tensor:
        return values.sum().view(1) if self.is_whole else self.layout.block_sum(values.reshape(-1))

    def expand(self, values: Tensor, p: Tensor) -> Tensor:
        """Values of the blocks (blocks,) for every entry of a parameter, in its shape."""
        if self.is_whole:
            return values.to(p.device).expand(p.numel()).view(p.shape)
        return self.layout.expand(self._picked(values)).view(p.shape)

    def aligned(self, p: Tensor, m: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See a parameter and its first moment in a shape to which values (blocks,) broadcast."""
        layout = self.layout
        if self.is_whole:  # 1 for each dimension: as a scalar it would be rounded to p's dtype
            return p, m, values.to(p.device).view((1,) * p.ndim)
        values = self._picked(values)
        if layout.is_identity:
            return p, m, values.view(p.shape)
        if isinstance(layout, Layout) and p.is_contiguous() and m.is_contiguous():
            kept = [size if dim in layout.keep else 1 for dim, size in enumerate(layout.view)]
            return p.view(layout.view), m.view(layout.view), values.view(kept)
        return p, m, layout.expand(values).view(p.shape)

    def _picked(self, values: Tensor) -> Tensor:
        """Values (blocks,) for the blocks of this rank's part."""
        return values if self.labels is None else values[self.labels]


def _norm(g: Tensor, dtype: torch.dtype) -> Tensor:
    """2-norm of one gradient: (1,)."""
    norm: Tensor
    if not g.is_cpu or g.dtype != dtype:
        norm = torch.linalg.vector_norm(g, dtype=dtype)
    else:
        flat = g.reshape(-1)
        num_whole = g.numel() // _PART * _PART
        rest = flat[num_whole:]
        norm = torch.dot(rest, rest).sqrt_()
        if num_whole:  # threads share the rows
            rows: Tensor = torch.linalg.vector_norm(flat[:num_whole].view(-1, _PART), dim=1)
            norm = torch.linalg.vector_norm(torch.cat([rows, norm.view(1)]))
    return norm.view(1)
