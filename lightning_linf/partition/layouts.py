"""How the entries of one tensor fall into blocks, and its rows and columns by module type."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Layout:
    """Blocks of one tensor that some of its dimensions index.

    Args:
        view: Shape that the tensor takes first.
        keep: Dimensions of ``view``, ascending, that index the blocks in their order.
            None of them: the tensor is in one block, alone or with other tensors.
        first: Number, in the whole partition, of the first of these blocks.

    Example:
        >>> Layout((2, 3), keep=(1,)).block_sum(torch.arange(6))
        tensor([3, 5, 7])
    """

    view: tuple[int, ...]
    keep: tuple[int, ...]
    first: int = 0

    @property
    def num_blocks(self) -> int:
        """Number of blocks that this tensor takes part in."""
        return math.prod(self.view[dim] for dim in self.keep)

    @property
    def is_identity(self) -> bool:
        """Whether every entry is a block."""
        return len(self.keep) == len(self.view)

    def block_sum(self, values: Tensor) -> Tensor:
        """Sum the entries of each block. Shapes: (..., entries) -> (..., blocks)."""
        if self.is_identity:  # torch reads a sum over no dimension as over all
            return values
        ndim = len(self.view)
        rest = [dim - ndim for dim in range(ndim) if dim not in self.keep]
        lead = values.shape[:-1]
        sums = values.reshape(*lead, *self.view).sum(rest, dtype=values.dtype)
        return sums.reshape(*lead, self.num_blocks)

    def expand(self, values: Tensor) -> Tensor:
        """Give every entry its block's value. Shapes: (..., blocks) -> (..., entries)."""
        if self.is_identity:
            return values
        lead = values.shape[:-1]
        kept = [size if dim in self.keep else 1 for dim, size in enumerate(self.view)]
        return values.reshape(*lead, *kept).expand(*lead, *self.view).flatten(len(lead))

    def counts(self, device: torch.device) -> Tensor:
        """Count this tensor's entries in each block. Shape: (blocks,)."""
        entries = math.prod(self.view) // max(1, self.num_blocks)
        return torch.full((self.num_blocks,), entries, device=device)


@dataclass(frozen=True, eq=False)
class IndexLayout:
    """Blocks of one tensor in no regular arrangement.

    Args:
        index: Block of every entry, counted from this tensor's first. Shape: (entries,).
        num_blocks: Number of blocks.
        first: Number, in the whole partition, of the first of these blocks.
    """

    index: Tensor
    num_blocks: int
    first: int = 0
    is_identity = False

    def block_sum(self, values: Tensor) -> Tensor:
        """Sum the entries of each block. Shapes: (..., entries) -> (..., blocks)."""
        sums = values.new_zeros((*values.shape[:-1], self.num_blocks))
        return sums.index_add(-1, self.index.to(values.device), values)

    def expand(self, values: Tensor) -> Tensor:
        """Give every entry its block's value. Shapes: (..., blocks) -> (..., entries)."""
        return values.index_select(-1, self.index.to(values.device))

    def counts(self, device: torch.device) -> Tensor:
        """Count this tensor's entries in each block. Shape: (blocks,)."""
        return torch.bincount(self.index, minlength=self.num_blocks).to(device)


class Owner(NamedTuple):
    """A module that holds a parameter, and the name under which it does."""

    module: nn.Module
    name: str


class Orientation(NamedTuple):
    """Which dimensions of a ``view`` of a parameter index output units, and which input units."""

    view: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]


_OUTPUT_FIRST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)  # an embedding's row: token
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ELEMENTWISE = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU, nn.SyncBatchNorm),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def row_or_column(
    side: Literal["row", "column"],
    name: str,
    shape: torch.Size,
    owners: Sequence[Owner],
    output_dims: Mapping[str, int],
) -> Layout:
    """Lay out one parameter by output unit (row) or by input unit (column)."""
    found = _stated(name, shape, output_dims) or _by_type(name, shape, owners)
    return Layout(found.view, found.outputs if side == "row" else found.inputs)


def check_patterns(named: Mapping[str, nn.Parameter], output_dims: Mapping[str, int]) -> None:
    """Raise if a pattern is found in the name of no parameter that it could orient."""
    for pattern in output_dims:
        if not any(p.ndim > 1 and re.search(pattern, name) for name, p in named.items()):
            raise ValueError(
                "Partition.of: expected every pattern of `output_dims` in the name of a trainable "
                f"parameter of two or more dimensions, got {pattern!r}, which is in none. "
                "Correct it or leave it out."
            )


def is_conv1d(module: nn.Module) -> bool:
    """Recognise transformers' Conv1D, a linear map that stores its weight as (in, out)."""
    weight, num_outputs = module._parameters.get("weight"), vars(module).get("nf")
    return (
        isinstance(num_outputs, int)
        and weight is not None
        and weight.ndim == 2
        and weight.shape[1] == num_outputs
    )


def _stated(name: str, shape: torch.Size, output_dims: Mapping[str, int]) -> Orientation | None:
    ndim = len(shape)
    pattern = next((pattern for pattern in output_dims if re.search(pattern, name)), None)
    if pattern is None or ndim < 2:  # a vector has one orientation only
        return None
    dim = output_dims[pattern]
    if not -ndim <= dim < ndim:
        raise ValueError(
            f"Partition.of: expected `output_dims` to name a dimension of {name} {tuple(shape)}, "
            f"got {dim} from {pattern!r}. Count from 0."
        )
    output = dim % ndim
    return Orientation(tuple(shape), (output,), (0 if output else 1,))


def _by_type(name: str, shape: torch.Size, owners: Sequence[Owner]) -> Orientation:
    found = [_orientation(owner, shape) for owner in owners]
    known = {orientation for orientation in found if orientation is not None}
    if len(known) == 1:
        return known.pop()
    types = " and ".join(type(owner.module).__name__ for owner in owners)
    raise ValueError(
        f"Partition.of: expected modules that tell which dimension of {name} {tuple(shape)} is the "
        f"output, got {types}, which {'contradict each other' if known else 'tells nothing'}. "
        f"Give output_dims={{{re.escape(name)!r}: that dimension}}."
    )


def _orientation(owner: Owner, shape: torch.Size) -> Orientation | None:
    """Tell outputs from inputs by the module's type; None where that does not tell."""
    module, name = owner
    vector = Orientation((shape.numel(),), (0,), ())
    output_first = Orientation(tuple(shape), (0,), tuple(range(1, len(shape))))
    if len(shape) < 2 or (isinstance(module, _ELEMENTWISE) and name in ("weight", "bias")):
        return vector
    if isinstance(module, nn.MultiheadAttention):
        if name in ("bias_k", "bias_v"):  # (1, 1, E)
            return vector
        return output_first if name.endswith("proj_weight") else None
    if isinstance(module, _RECURRENT):
        return output_first if name.startswith(("weight_ih", "weight_hh", "weight_hr")) else None
    if name != "weight":  # what a subclass adds, such as the factors of a low-rank update
        return None
    if isinstance(module, _OUTPUT_FIRST):
        return output_first
    if isinstance(module, (*_CONV, *_CONV_TRANSPOSE)):
        # A group has inputs and outputs of its own; the weight holds dim 0 for all of them,
        # dim 1 for one.
        groups = module.groups
        view = (groups, shape[0] // groups, shape[1], shape[2:].numel())
        zero, one = (0, 1), (0, 2)
        return (
            Orientation(view, zero, one)
            if isinstance(module, _CONV)
            else Orientation(view, one, zero)
        )
    if is_conv1d(module):
        return Orientation(tuple(shape), (1,), (0,))
    return None
