"""Parameters whose second moments are kept in one vector, and the blocks that they fall into."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lightning_linf.distributed.shards import is_sharded, sum_over_ranks
from lightning_linf.functional.dtypes import working_dtype
from lightning_linf.optim.blockwise.shard_layout import shard_layout
from lightning_linf.optim.blockwise.slices import Slices, slices
from lightning_linf.partition.layouts import IndexLayout, Layout

# Squares that are added up at once on the CPU: one float32 sum of 3e7 loses up to 0.3 %.
_CHUNK = 2**16


@dataclass
class BlockSet:
    """The blocks of one parameter, or the one block that several parameters form together.

    Its second moments are one vector, with a number for each block. Examples: a weight matrix of
    5 rows under the partition "row" is a set of 5 blocks; all parameters of a model under the
    partition "global" are a set of one block.

    Where a parameter is sharded, methods take and return what belongs to this rank's part of it:
    of gradients, moments and, unless they say otherwise, blocks.
    """

    layout: Layout | IndexLayout  # of the first parameter; any others lie in the same single block
    params: list[Tensor]
    groups: list[int]  # for each parameter, the number of its parameter group
    sizes: Tensor | None = None  # entries of each block, if the layout is irregular: (blocks,)
    labels: Tensor | None = None  # which of the tensor's blocks the local ones are: (local blocks,)

    @property
    def owner(self) -> Tensor:
        """The parameter whose state holds the second moments."""
        return self.params[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the second moments: float32, or wider if a parameter is."""
        return working_dtype(self.params)

    @property
    def state_shape(self) -> torch.Size:
        """The shape of the second moments: the parameter's own if every entry is a block."""
        return self.owner.shape if self.is_identity else torch.Size([self.num_blocks])

    @cached_property
    def slices(self) -> Slices | None:
        """The (local) blocks as slices of the first parameter, if they are regular ones."""
        return slices(self.layout)

    def __post_init__(self) -> None:
        self.num_blocks = self.layout.num_blocks
        self.is_whole = self.num_blocks == 1  # each gradient lies in one block as a whole
        self.is_identity = self.layout.is_identity  # every entry is a block
        self.is_sharded = self.spans_ranks = False

    def shard(self) -> None:
        """Lay out this rank's parts, once all parameters have been added."""
        self.is_sharded = any(map(is_sharded, self.params))
        if not self.is_sharded:
            return
        self.spans_ranks = not self.is_identity
        self.is_whole = self.is_whole and self.spans_ranks
        p, layout = self.owner, self.layout
        if is_sharded(p) and not self.is_whole:  # so it is the only parameter
            self.layout, self.labels = shard_layout(layout, p)
            if isinstance(self.layout, IndexLayout):
                self.sizes = layout.counts(p.device)

    def move_index(self) -> None:
        """Move index tensors to the parameter's device, so that steps need not copy them."""
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
        """Compute the norm of each block of one gradient: (local blocks,).

        It is the 2-norm, except in irregular layouts: there the sum of squares is divided by the
        number of entries of the block before the root is taken. Either way the mean of squares is
        its square divided by :meth:`size`.
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
        if g.is_cpu and last in layout.keep:  # ten times as fast as vector_norm across rows
            return parts.to(dtype).square().sum(rest).sqrt_().view(-1)
        norms: Tensor = torch.linalg.vector_norm(parts, dim=rest, dtype=dtype)
        return norms.view(-1)

    def joint_norms(self, norms: Sequence[Tensor], like: Tensor) -> Tensor:
        """Combine the norms of one or several gradients, on the device of ``like``: (blocks,)."""
        if len(norms) == 1:
            return norms[0]
        joint: Tensor = torch.linalg.vector_norm(
            torch.cat([each.to(like.device) for each in norms])
        )
        return joint.view(1)

    def size(self, grads: Sequence[Tensor]) -> float:
        """Give the number of entries by which the square of :meth:`norms` is to be divided."""
        if self.is_identity or (self.sizes is not None and not self.is_whole):
            return 1.0
        return sum([g.numel() for g in grads]) / self.num_blocks

    def total(self, values: Tensor) -> Tensor:
        """Add up local blocks that are parts of one block: (local blocks,) -> (blocks,)."""
        if self.labels is None:
            return values
        return values.new_zeros(self.num_blocks).index_add_(0, self.labels, values)

    def mean(self, params: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
        """Average values, one for each entry of some of the parameters, by block: (blocks,)."""
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
        """Give every entry of a parameter the value of its block: (blocks,) -> shape of ``p``."""
        if self.is_whole:
            return values.to(p.device).expand(p.numel()).view(p.shape)
        return self.layout.expand(self.local(values)).view(p.shape)

    def aligned(self, p: Tensor, m: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """View a parameter, its first moment and (blocks,) values so that the values broadcast."""
        layout = self.layout
        if self.is_whole:  # of p's number of dimensions: a scalar would be rounded to p's dtype
            return p, m, values.to(p.device).view((1,) * p.ndim)
        values = self.local(values)
        if layout.is_identity:
            return p, m, values.view(p.shape)
        if isinstance(layout, Layout) and p.is_contiguous() and m.is_contiguous():
            kept = [size if dim in layout.keep else 1 for dim, size in enumerate(layout.view)]
            return p.view(layout.view), m.view(layout.view), values.view(kept)
        return p, m, layout.expand(values).view(p.shape)

    def local(self, values: Tensor) -> Tensor:
        """Pick the values of local blocks: (blocks,) -> (local blocks,)."""
        return values if self.labels is None else values[self.labels]


def _norm(g: Tensor, dtype: torch.dtype) -> Tensor:
    """Compute the 2-norm of one gradient: (1,)."""
    norm: Tensor
    if not g.is_cpu or g.dtype != dtype:
        norm = torch.linalg.vector_norm(g, dtype=dtype)
    else:
        flat = g.reshape(-1)
        num_chunked = g.numel() // _CHUNK * _CHUNK
        rest = flat[num_chunked:]
        norm = torch.dot(rest, rest).sqrt_()
        if num_chunked:  # threads share the rows
            rows: Tensor = torch.linalg.vector_norm(flat[:num_chunked].view(-1, _CHUNK), dim=1)
            norm = torch.linalg.vector_norm(torch.cat([rows, norm.view(1)]))
    return norm.view(1)
