"""The partition Phi of a module's parameters into blocks."""

from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import get_args

import torch
from rich.console import Console, Group
from torch import Tensor, nn

from lightning_linf.partition.layouts import IndexLayout, Layout
from lightning_linf.partition.pieces import Piece, labelled, matched, nothing, number, trainable
from lightning_linf.partition.structure import check_structure, structural
from lightning_linf.partition.table import table
from lightning_linf.partition_names import FusedQKV, PartitionName


class Partition:
    r"""Split of the d trainable parameters of a module into B blocks.

    Parameters count in ``named_parameters()`` order, a tied one once, frozen ones not; a vector of
    d numbers holds their flattened tensors in that order. One without entries has no block. Made by
    :meth:`of`, :meth:`by_regex` and :meth:`by_function`, it keeps names and shapes, but neither the
    module nor its parameters, and nothing of d numbers but the integer tensors given to
    :meth:`by_function`.

    Attributes:
        name: What it is called.
        names: Names of the parameter tensors.
        shapes: Their shapes.
        num_params: d.
        num_blocks: B.

    Source:
        Blockwise Adam and its smoothness: Xie, Mohamadi & Li, arXiv:2410.08198.

    Example:
        >>> module = torch.nn.Linear(3, 2)
        >>> rows = Partition.of(module, "row")
        >>> rows
        Partition('row', 4 blocks of 8 parameters)
        >>> rows.block_sum(torch.ones(8))
        tensor([3., 3., 1., 1.])
        >>> rows.refines(Partition.of(module, "tensor"))
        True
    """

    def __init__(
        self, name: str, named: Mapping[str, nn.Parameter], pieces: Iterable[Piece]
    ) -> None:
        self.name = name
        self.names = list(named)
        self.shapes = [p.shape for p in named.values()]
        self._entries = [p.numel() for p in named.values()]
        of_entries = iter(pieces)
        self._layouts = number(
            next(of_entries) if entries else (None, nothing()) for entries in self._entries
        )
        self._is_identity = all(layout.is_identity for layout in self._layouts)
        self.num_params = sum(self._entries)
        self.num_blocks = max(layout.first + layout.num_blocks for layout in self._layouts)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        name: PartitionName,
        *,
        parameters: Collection[nn.Parameter] | None = None,
        output_dims: Mapping[str, int] | None = None,
        fused_qkv: FusedQKV | None = None,
    ) -> "Partition":
        """Split by the structure of the module: by the types of its submodules, not their names.

        - ``"coordinate"``: every entry; ``"tensor"``: every parameter tensor; ``"module"``: the
          tensors that one submodule holds itself; ``"global"``: everything.
        - ``"row"``: the weights into one output unit, or of one embedded token; ``"column"``: those
          out of one input unit. A vector (a bias, any normalisation) is a matrix of one column. In
          a raw parameter (tokens, positions, a router), whose module tells nothing, the first
          dimension counts as output and the next as input, leading dimensions of one left out as
          long as two remain; :meth:`describe` marks it.
        - ``"head"``: in attention, each head's query, key and value and its share of the output
          projection are four blocks; elsewhere, every tensor is one. Attention is
          :class:`torch.nn.MultiheadAttention`, and any module with a number of heads (or a head
          size and ``config.num_attention_heads``) and two or more linear maps of its own. Where
          these are query, key and value alone, the output projection is the only other linear map
          in its parent, if that leads back to the width of an input (BERT).

        Args:
            module: Whose parameters.
            name: One of the names above.
            parameters: Of those that require grad, only these. Default: all.
            output_dims: For rows and columns, the dimension that is the output, by regular
                expression searched in the parameter's name. The first one found wins, also over
                the module's type. The input is the first other dimension. Vectors need none.
            fused_qkv: For heads, the order of the outputs of an ``nn.Linear`` that computes query,
                key and value: ``"qkv_head"`` (nanoGPT, timm) or ``"head_qkv"`` (GPT-NeoX, BLOOM).

        Raises:
            ValueError: If a name is unknown, nothing is trainable, or parameters have no place: all
                that lack an argument are named.
        """
        if name not in get_args(PartitionName):
            raise ValueError(
                "Partition.of: expected `name` to be one of "
                f"{', '.join(map(repr, get_args(PartitionName)))}, got {name!r}. Give one of "
                "them, or see Partition.by_regex and Partition.by_function."
            )
        check_structure("Partition.of", output_dims, fused_qkv)
        named = trainable("of", module, parameters)
        return cls(
            name,
            named,
            structural(module, name, _with_entries(named), output_dims or {}, fused_qkv),
        )

    @classmethod
    def by_regex(
        cls,
        module: nn.Module,
        pattern: str,
        *,
        parameters: Collection[nn.Parameter] | None = None,
        name: str = "regex",
    ) -> "Partition":
        r"""Split by what one regular expression finds in the parameters' names.

        Args:
            module: Whose parameters.
            pattern: Searched in each name. Parameters for which its groups are the same, or
                without groups the text that it matches, share a block.
            parameters: Of those that require grad, only these. Default: all.
            name: What to call it.

        Raises:
            ValueError: If nothing is trainable, or a name does not match.

        Example:
            >>> module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
            >>> Partition.by_regex(module, r"(\d+)\.", name="layer")
            Partition('layer', 2 blocks of 14 parameters)
        """
        named = trainable("by_regex", module, parameters)
        return cls(name, named, matched(pattern, _with_entries(named)))

    @classmethod
    def by_function(
        cls,
        module: nn.Module,
        function: Callable[[str, nn.Parameter], Hashable | Tensor],
        *,
        parameters: Collection[nn.Parameter] | None = None,
        name: str = "function",
    ) -> "Partition":
        """Split by a function of a parameter and its name.

        Args:
            module: Whose parameters.
            function: Gives a hashable label, whose tensors form one block; or an integer tensor of
                the parameter's shape, in which entries with equal numbers do.
            parameters: Of those that require grad, only these. Default: all.
            name: What to call it.

        Raises:
            ValueError: If nothing is trainable, or the function gives anything else.

        Example:
            >>> module, halves = torch.nn.Linear(4, 3), torch.tensor([0, 0, 1, 1])
            >>> def split(name, p):
            ...     return halves.expand(p.shape) if name == "weight" else "bias"
            >>> Partition.by_function(module, split).sizes(torch.empty(0))
            tensor([6., 6., 3.])
        """
        named = trainable("by_function", module, parameters)
        return cls(name, named, labelled(function, _with_entries(named)))

    @property
    def layouts(self) -> tuple[Layout | IndexLayout, ...]:
        """How the entries of each tensor fall into blocks, in the order of ``names``."""
        return tuple(self._layouts)

    def block_sum(self, values: Tensor) -> Tensor:
        """Sum the entries of each block, in their own dtype. Shapes: (..., d) -> (..., B).

        The result may share memory with ``values``.
        """
        self._check_last("block_sum", values, "d", self.num_params)
        if self._is_identity:
            return values
        parts = values.split_with_sizes(self._entries, dim=-1)
        pairs = zip(self._layouts, parts, strict=True)
        return self._join(layout.block_sum(part) for layout, part in pairs)

    def expand(self, values: Tensor) -> Tensor:
        """Give every entry its block's value. Shapes: (..., B) -> (..., d).

        The result may share memory with ``values``.
        """
        self._check_last("expand", values, "B", self.num_blocks)
        if self._is_identity:
            return values
        parts = (values.narrow(-1, each.first, each.num_blocks) for each in self._layouts)
        pairs = zip(self._layouts, parts, strict=True)
        return torch.cat([layout.expand(part) for layout, part in pairs], dim=-1)

    def sizes(self, like: Tensor) -> Tensor:
        """Count the entries d_b of each block, in the dtype and on the device of ``like``. (B,)."""
        if self._is_identity:
            return like.new_ones(self.num_params)
        return self._join(each.counts(like.device) for each in self._layouts).to(like.dtype)

    def refines(self, other: "Partition") -> bool:
        """Tell whether every block lies inside one block of ``other``, exactly.

        Raises:
            ValueError: If ``other`` splits other parameters.
        """
        self.check(other.names, other.shapes)
        if self._is_identity or other.num_blocks == 1:
            return True
        label = other.expand(torch.arange(other.num_blocks))
        # All labels of a block are equal if and only if each is their mean; integers: exactly.
        totals = self.expand(self.block_sum(label))
        return torch.equal(totals, label * self.expand(self.sizes(label)))

    def check(self, names: Sequence[str], shapes: Sequence[torch.Size]) -> None:
        """Raise a ValueError unless these are the parameters that this splits, in order."""
        expected = list(zip(self.names, self.shapes, strict=True))
        got = list(zip(names, shapes, strict=True))
        if expected == got:
            return
        both = zip([*expected, None], [*got, None], strict=False)
        ours, theirs = next((a, b) for a, b in both if a != b)
        raise ValueError(
            f"Partition.check: expected the parameters of {self!r}, where {_show(ours)}, "
            f"got {_show(theirs)}. "
            "Build the Partition from the same module and the same `parameters`."
        )

    def describe(self) -> None:
        """Print a row for every parameter tensor, and what one number per block needs.

        A star marks tensors whose output dimension was assumed.
        """
        Console().print(self)

    def __rich__(self) -> Group:
        return table(self.name, self.names, self.shapes, self._layouts, self.num_blocks)

    def __repr__(self) -> str:
        blocks = f"{self.num_blocks:,} block{'s' if self.num_blocks > 1 else ''}"
        return f"Partition({self.name!r}, {blocks} of {self.num_params:,} parameters)"

    def _join(self, parts: Iterable[Tensor]) -> Tensor:
        """Concatenate the tensors' blocks (..., blocks), adding up those of a shared block."""
        joined: dict[int, Tensor] = {}  # in order of their numbers, which is that of appearance
        for layout, part in zip(self._layouts, parts, strict=True):
            first = layout.first
            if layout.num_blocks:
                joined[first] = joined[first] + part if first in joined else part
        return torch.cat(list(joined.values()), dim=-1)

    def _check_last(self, method: str, values: Tensor, letter: str, size: int) -> None:
        if values.ndim == 0 or values.shape[-1] != size:
            raise ValueError(
                f"Partition.{method}: expected `values` of shape (..., {letter}) with {letter} = "
                f"{size:,}, got {tuple(values.shape)}. Use the Partition of these parameters."
            )


def _with_entries(named: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    return {name: p for name, p in named.items() if p.numel()}


def _show(parameter: tuple[str, torch.Size] | None) -> str:
    return f"{parameter[0]} {tuple(parameter[1])}" if parameter else "no further one"
