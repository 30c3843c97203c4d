"""A partition, called Phi in formulas: a split of a module's parameters into blocks."""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, get_args

import torch
from rich.console import Console, Group
from torch import Tensor, nn

from lightning_linf.argument_checks import check_choice
from lightning_linf.extras import needing
from lightning_linf.partition.layouts import IndexLayout, Layout
from lightning_linf.partition.pieces import Piece, labelled, matched, nothing, number, trainable
from lightning_linf.partition.refinement import is_finer
from lightning_linf.partition.structure import check_structure, structural
from lightning_linf.partition.table import (
    TensorBlocks,
    blocks_of_tensors,
    in_notebook,
    in_terminal,
)
from lightning_linf.partition_names import FusedQKV, PartitionName

if TYPE_CHECKING:
    from pandas import DataFrame


class Partition:
    r"""Split of the d trainable parameters of a module into B blocks.

    Build one with :meth:`of`, :meth:`by_regex` or :meth:`by_function`. Its methods take vectors of
    d numbers: one for each entry of the parameters, flattened in the order of
    ``named_parameters()``. A tied parameter counts once, a frozen one not at all, and one without
    entries belongs to no block.

    It stores names and shapes, neither the module nor its parameters. Only the integer tensors
    that a function gave to :meth:`by_function` take memory for every entry.

    Attributes:
        name: What it is called, "row" for example.
        names: Names of the parameter tensors.
        shapes: Their shapes.
        num_params: The number d of entries.
        num_blocks: The number B of blocks.
        is_identity: Whether every entry is a block, and has its own number as the number of it.

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
        self.is_identity = all(layout.is_identity for layout in self._layouts)
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

        - ``"coordinate"``: every entry is a block.
        - ``"tensor"``: every parameter tensor is a block.
        - ``"module"``: the parameter tensors that one submodule holds itself form a block.
        - ``"global"``: everything is one block.
        - ``"row"``: a block has the weights into one output unit, or those of one embedded token.
          A vector, such as a bias or the weight of a normalisation, has one block for each entry.
        - ``"column"``: a block has the weights out of one input unit. A vector is one block.
        - ``"head"``: in attention, a block is the query, the key, the value or the output
          projection of one head. Every other tensor is a block.

        Of a parameter that is not part of a known layer (a class token, positions, a router), the
        first dimension is taken for the output and the next one for the input. Leading dimensions
        of size one are passed over as long as two others remain: a (1, n, e) tensor of positions
        has n rows. :meth:`describe` marks such parameters.

        Attention is :class:`torch.nn.MultiheadAttention`, or any module that states its number of
        heads (in an attribute such as ``num_heads``, or in ``config`` beside a head size) and has
        two or more linear maps as direct children. If these are query, key and value alone, as in
        BERT, the parent's only other linear map counts as the output projection, if its sizes fit.

        Args:
            module: The module whose parameters are split.
            name: One of the names above.
            parameters: Split only these of the parameters that require grad. Default: all.
            output_dims: For rows and columns, which dimension of a parameter is the output, by a
                regular expression that is searched in the parameter's name, as in
                ``{"router": 0}``. The first expression that is found counts, and more than the
                module's type. The first other dimension is the input. Vectors need none.
            fused_qkv: For heads, the order of the outputs of an ``nn.Linear`` that computes query,
                key and value: ``"qkv_head"`` (nanoGPT, timm) or ``"head_qkv"`` (GPT-NeoX, BLOOM).

        Raises:
            ValueError: If a name is unknown, if nothing is trainable, or if the structure does not
                tell the blocks of some parameters; the message names them and the argument to give.
        """
        remedy = "For others see Partition.by_regex and Partition.by_function."
        check_choice("Partition.of", "name", name, get_args(PartitionName), remedy)
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
        r"""Group whole parameter tensors by what a regular expression finds in their names.

        Args:
            module: The module whose parameters are split.
            pattern: Searched in each name. Tensors for which its groups match the same texts (or,
                without groups, the whole match is the same) form one block.
            parameters: Split only these of the parameters that require grad. Default: all.
            name: What to call the partition.

        Raises:
            ValueError: If nothing is trainable, or the expression is not found in some name.

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
        """Split by a function of a parameter's name and the parameter.

        Args:
            module: The module whose parameters are split.
            function: Returns a hashable label, and all tensors with the same label form one block;
                or an integer tensor of the parameter's shape, and the entries of this parameter
                with the same number form one block.
            parameters: Split only these of the parameters that require grad. Default: all.
            name: What to call the partition.

        Raises:
            ValueError: If nothing is trainable, or the function returns anything else.

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
    def whole(self) -> "Partition":
        """This partition, for vectors that are no shards."""
        return self

    @property
    def layouts(self) -> tuple[Layout | IndexLayout, ...]:
        """For each tensor, in the order of ``names``, how its entries fall into blocks."""
        return tuple(self._layouts)

    def block_sum(self, values: Tensor) -> Tensor:
        """Sum over the entries of each block, in the dtype of ``values``: (..., d) -> (..., B).

        The result may share memory with ``values``.
        """
        self._check_last("block_sum", values, "d", self.num_params)
        if self.is_identity:
            return values
        parts = values.split_with_sizes(self._entries, dim=-1)
        pairs = zip(self._layouts, parts, strict=True)
        return self._join(layout.block_sum(part) for layout, part in pairs)

    def expand(self, values: Tensor) -> Tensor:
        """Give every entry the value of its block: (..., B) -> (..., d).

        The result may share memory with ``values``.
        """
        self._check_last("expand", values, "B", self.num_blocks)
        if self.is_identity:
            return values
        parts = (values.narrow(-1, each.first, each.num_blocks) for each in self._layouts)
        pairs = zip(self._layouts, parts, strict=True)
        return torch.cat([layout.expand(part) for layout, part in pairs], dim=-1)

    def sizes(self, like: Tensor) -> Tensor:
        """Count the entries of each block, in the dtype and on the device of ``like``: (B,)."""
        if self.is_identity:
            return like.new_ones(self.num_params)
        return self._join(each.counts(like.device) for each in self._layouts).to(like.dtype)

    def pieces(self, most: int) -> Iterator[tuple[slice, Layout | IndexLayout]]:
        """Cut the d coordinates into pieces of at most ``most``, each with its own blocks."""
        start = 0
        for layout, entries in zip(self._layouts, self._entries, strict=True):
            for count, piece in layout.pieces(most) if entries else ():
                yield slice(start, start + count), piece
                start += count

    def refines(self, other: "Partition") -> bool:
        """Tell whether every block lies inside a single block of ``other``.

        Memory: of three whole numbers for each entry of the largest tensor.

        Raises:
            ValueError: If ``other`` splits other parameters than this one.
        """
        self.check(other.names, other.shapes)
        if self.is_identity or other.num_blocks == 1:
            return True
        return is_finer(self._layouts, other._layouts, self.num_blocks)

    def check(self, names: Collection[str], shapes: Collection[torch.Size]) -> None:
        """Raise a ValueError unless these are the parameters that it splits, in their order."""
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
        """Print the blocks of every parameter tensor, and the memory of one number per block.

        A star marks tensors whose output dimension no module tells, so that it was assumed.
        """
        Console().print(self)

    def to_pandas(self) -> "DataFrame":
        """Give the blocks of every parameter tensor as a table of pandas, which must be installed.

        Its columns are those of :class:`~lightning_linf.partition.table.TensorBlocks`.

        Raises:
            ModuleNotFoundError: If pandas is not installed.
        """
        with needing("notebook", "Partition.to_pandas"):
            from pandas import DataFrame

        return DataFrame([vars(row) for row in self._rows()]).set_index("parameter")

    def _rows(self) -> list[TensorBlocks]:
        return blocks_of_tensors(self.names, self.shapes, self._layouts)

    def __rich__(self) -> Group:
        return in_terminal(self.name, self._rows(), self.num_blocks, self.num_params)

    def _repr_html_(self) -> str:
        return in_notebook(self.name, self._rows(), self.num_blocks, self.num_params)

    def __repr__(self) -> str:
        blocks = f"{self.num_blocks:,} block{'s' if self.num_blocks > 1 else ''}"
        return f"Partition({self.name!r}, {blocks} of {self.num_params:,} parameters)"

    def _join(self, parts: Iterable[Tensor]) -> Tensor:
        """Join what each tensor adds to its blocks, (..., blocks); tensors of one block add up."""
        # By the number of a tensor's first block. Blocks are numbered in the order in which they
        # first appear, so insertion keeps the numbers in order.
        joined: dict[int, Tensor] = {}
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
