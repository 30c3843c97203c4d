"""Gradient noise from the microbatches that one optimizer step accumulates."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.distributed.shards import is_counted_here, is_sharded, local_grad
from lightning_linf.functional.dtypes import working_dtype
from lightning_linf.functional.finite import require_finite
from lightning_linf.functional.noise import NoiseEstimate, noise_compute
from lightning_linf.functional.noise_sums import (
    NoiseSums,
    noise_add,
    noise_count,
    noise_init,
    noise_update,
)
from lightning_linf.probe.noise import over_ranks


class Microbatches:
    """Sums over the gradients of the microbatches of a step, which all see the same parameters.

    Reads each gradient on its way to ``.grad``, by hooks on the parameters: before it is added to
    those of earlier microbatches, and before DDP averages it over ranks. A communication hook would
    see the last microbatch only, summed up with the others, and take the place of the user's own.

    Args:
        parameters: Of the optimizers.
        ranks: The microbatches of all of them make the step.
        may_overflow: Gradients that are not finite are not an error, as with a gradient scaler.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], ranks: Ranks, *, may_overflow: bool = False
    ) -> None:
        self.weight = 0.0
        """Samples in the present microbatch."""
        self.failure: Exception | None = None
        """An error after which this step is not measured; :meth:`noise` raises it."""
        self._parameters = parameters
        self._ranks = ranks
        self._may_overflow = may_overflow
        self._sums: NoiseSums | None = None
        self._num_added = 0
        self._num_overflows = 0  # microbatches whose gradient was not finite
        self._handles: list[RemovableHandle] = []
        self._gradient = torch.zeros(0)

    def start(self) -> None:
        """Set hooks for a backward pass, which is about to begin."""
        if self.failure is not None:
            return
        sizes = [num_real(p) for p in self._parameters]
        self._gradient = self._zeros(sum(sizes))
        parts = self._gradient.split_with_sizes(sizes)
        for p, part in zip(self._parameters, parts, strict=True):
            handle = p.register_hook(partial(self._add_gradient, part))  # type: ignore[no-untyped-call]
            self._handles.append(handle)

    def finish(self, factor: float) -> None:
        """Add the gradient of the pass that has ended, times ``factor``, to the sums."""
        self.stop()
        if self.failure is not None:
            return
        gradient, self._gradient = self._gradient.mul_(factor), torch.zeros(0)
        if not gradient.isfinite().all():
            self._num_overflows += 1
            return
        if self._sums is None:
            self._sums = noise_init(len(gradient), gradient, self._ranks.rank % 2)
        noise_update(self._sums, gradient, self.weight)
        self._num_added += 1

    def stop(self) -> None:
        """Remove the hooks, also after a pass that failed."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def noise(self) -> NoiseEstimate | None:
        """Compute the noise; None if there was an overflow, or only one microbatch on all ranks.

        Raises:
            ProbeError: If another rank failed.
            ValueError: If a gradient is not finite, and may not be.
            Exception: The ``failure`` of this rank.
        """
        added, overflows = self._ranks.agree(self.failure, self._num_added, self._num_overflows)
        if not self._is_enough(added, overflows):
            return None
        sizes = [num_real(p) for p in self._parameters]
        sums = self._ranks.together(lambda: self._sums or noise_init(sum(sizes), self._zeros(0)))
        sums = over_ranks(sums, self._ranks)
        return noise_compute(sums, sizes, _coordinate_and_global(sum(sizes)))

    def _is_enough(self, num_added: float, num_overflows: float) -> bool:
        require_finite(self._may_overflow or not num_overflows, "noise", "a finite gradient")
        return num_added >= 2 and not num_overflows

    def _add_gradient(self, part: Tensor, gradient: Tensor) -> None:
        try:  # an error here would end the training's own backward pass
            part += _as_real(gradient.detach().to_dense()).reshape(-1)
        except Exception as error:
            self.failure = self.failure or error

    def _zeros(self, size: int) -> Tensor:
        dtype = working_dtype(self._parameters).to_real()
        return torch.zeros(size, dtype=dtype, device=self._parameters[0].device)


class ShardedMicrobatches(Microbatches):
    """Microbatches of parameters sharded by ``fully_shard``.

    Each microbatch is averaged over ranks before it reaches ``.grad``, so it is one over all ranks;
    this rank keeps numbers for its shards. Reads ``.grad`` before and after the backward pass; the
    rounding of their running sum in bfloat16 counts as noise.

    Args:
        parameters: Of the optimizers.
        ranks: That hold the other shards.
        may_overflow: As for :class:`Microbatches`.
        copies: How many ranks share a microbatch, in tensor parallelism.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        ranks: Ranks,
        *,
        may_overflow: bool = False,
        copies: int = 1,
    ) -> None:
        super().__init__(parameters, ranks, may_overflow=may_overflow)
        self._copies = copies
        self._before: list[Tensor | None] = []
        self._sizes: list[int] = []

    def start(self) -> None:
        """Copy the running sum of gradients, to which the pass is going to add."""
        if self.failure is None:
            self._before = [None if p.grad is None else p.grad.clone() for p in self._parameters]

    def finish(self, factor: float) -> None:
        """Add to the sums what the pass has added, times ``factor``.

        Raises:
            ProbeError: If another rank failed.
            Exception: The ``failure`` of this rank.
        """
        if self._ranks.all_know:
            return
        gradient, is_finite = self._ranks.together(lambda: self._read(factor))
        weight, overflows = self._ranks.agree(None, self.weight, float(not is_finite))
        if overflows:
            self._num_overflows += 1
            return
        sums = self._sums
        assert sums is not None
        norm = self._ranks.together(lambda: noise_add(sums, gradient, weight / self._copies))
        noise_count(sums, None if norm is None else self._ranks.sum(norm))
        self._num_added += 1

    def _read(self, factor: float) -> tuple[Tensor, bool]:
        """Give what the pass has added to what this rank counts, and whether that is finite."""
        before, self._before = self._before, []
        if self.failure is not None:
            raise self.failure
        parts = [_added(*each) for each in zip(self._parameters, before, strict=True)]
        gradient = torch.cat(parts).to(self._zeros(0).dtype).mul_(factor)
        if self._sums is None:
            self._sums = noise_init(len(gradient), gradient)
            self._sizes = [len(part) for part in parts]
        return gradient, bool(gradient.isfinite().all())

    def stop(self) -> None:
        """Free the copies."""
        self._before = []

    def noise(self) -> NoiseEstimate | None:
        """As :meth:`Microbatches.noise`."""
        if not self._ranks.all_know:
            self._ranks.agree(self.failure)
        if self.failure is not None:
            raise self.failure
        if not self._is_enough(self._num_added, self._num_overflows):
            return None
        assert self._sums is not None
        whole = _coordinate_and_global(sum(num_real(p) for p in self._parameters))
        return noise_compute(self._sums, self._sizes, whole, self._ranks.sum)


def _added(p: nn.Parameter, before: Tensor | None) -> Tensor:
    """What a pass has added to the part of a gradient that this rank counts."""
    after = torch.zeros_like(p) if p.grad is None else p.grad
    change = after if before is None else after - before
    part = _as_real(local_grad(p, change.detach())).reshape(-1)
    is_counted = is_counted_here(p) if is_sharded(p) else torch.distributed.get_rank() == 0
    return part if is_counted else part[:0]


def num_real(p: Tensor) -> int:
    """Count coordinates: a complex entry has two."""
    return 2 * p.numel() if p.is_complex() else p.numel()


def _as_real(gradient: Tensor) -> Tensor:
    return torch.view_as_real(gradient.resolve_conj()) if gradient.is_complex() else gradient


class _Blocks:
    """The partition "coordinate" or "global", without a module to make it of.

    Of sharded parameters the vectors are the part of this rank, and ``sizes`` those of the whole.
    """

    first = 0  # the number of the first block that a piece has entries of

    def __init__(self, name: str, num_params: int, num_blocks: int) -> None:
        self.name, self.num_params, self.num_blocks = name, num_params, num_blocks
        self.is_identity = num_blocks == num_params

    def block_sum(self, values: Tensor) -> Tensor:
        return values if self.num_blocks > 1 else values.sum(dim=-1, keepdim=True)

    def expand(self, values: Tensor) -> Tensor:
        return values.expand(*values.shape[:-1], self.num_params)

    def sizes(self, like: Tensor) -> Tensor:
        return like.new_full((self.num_blocks,), self.num_params / self.num_blocks)

    def pieces(self, most: int) -> Iterator[tuple[slice, "_Blocks"]]:
        for start in range(0, self.num_params, most):
            part = slice(start, min(start + most, self.num_params))
            count = part.stop - part.start
            piece = _Blocks(self.name, count, count if self.num_blocks > 1 else 1)
            piece.first = start if self.num_blocks > 1 else 0
            yield part, piece


def _coordinate_and_global(num_params: int) -> dict[str, _Blocks]:
    return {
        "coordinate": _Blocks("coordinate", num_params, num_params),
        "global": _Blocks("global", num_params, 1),
    }
