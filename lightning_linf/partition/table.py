"""A partition as a table: in the terminal, in a notebook, and as columns."""

import html
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lightning_linf.partition.layouts import IndexLayout, Layout

_MIB = 2**20
_HEADINGS = ("parameter", "shape", "blocks", "entries per block")
_ASSUMED = (
    "*: no module tells which dimension is the output; taken is the first, not counting leading "
    "ones. Say it by output_dims={pattern of its name: dimension}."
)


@dataclass(frozen=True)
class TensorBlocks:
    """The blocks of one parameter tensor."""

    parameter: str
    shape: tuple[int, ...]
    num_blocks: int
    num_tensors: int  # that share its block; 1 if its blocks are its own, 0 without entries
    smallest: int  # entries of its smallest block, with those of other tensors in it
    largest: int
    is_assumed: bool  # no module tells which dimension is the output

    def cells(self) -> tuple[str, str, str, str]:
        """Write one row of the table."""
        blocks, size = f"{self.num_blocks:,}", f"{self.smallest:,}"
        if self.num_tensors > 1:
            blocks = f"1, shared by {self.num_tensors}"
        elif self.num_tensors == 0:
            size = "none"
        elif self.smallest < self.largest:
            size = f"{self.smallest:,}-{self.largest:,}"
        return self.parameter + " *" * self.is_assumed, str(self.shape), blocks, size


def blocks_of_tensors(
    names: Sequence[str], shapes: Sequence[torch.Size], layouts: Sequence[Layout | IndexLayout]
) -> list[TensorBlocks]:
    """Count the blocks of each tensor, and the entries in them."""
    # Tensors that share a block have the same first one; those without entries have none at all.
    sharing = Counter(layout.first for layout in layouts if layout.num_blocks)
    entries: Counter[int] = Counter()
    for layout, shape in zip(layouts, shapes, strict=True):
        entries[layout.first] += shape.numel()
    rows = []
    for layout, name, shape in zip(layouts, names, shapes, strict=True):
        num_tensors = sharing[layout.first] if layout.num_blocks else 0
        if num_tensors > 1:
            smallest = largest = entries[layout.first]
        else:
            smallest, largest = _range(layout)
        rows.append(
            TensorBlocks(
                name,
                tuple(shape),
                layout.num_blocks,
                num_tensors,
                smallest,
                largest,
                layout.is_assumed,
            )
        )
    return rows


def in_terminal(name: str, rows: Sequence[TensorBlocks], num_blocks: int, num_params: int) -> Group:
    """Show the blocks of each tensor, which were assumed, and the memory of a float32 per block."""
    grid = Table(*_HEADINGS[:2])
    for heading in _HEADINGS[2:]:
        grid.add_column(heading, justify="right")
    grid.columns[0].overflow = "fold"
    for row in rows:
        parameter, shape, *numbers = row.cells()
        # As Text, for rich would read "[...]" in a plain name as markup.
        grid.add_row(Text(parameter), Text(shape), *numbers)
    return Group(grid, *map(Text, _notes(name, rows, num_blocks, num_params)))


def in_notebook(name: str, rows: Sequence[TensorBlocks], num_blocks: int, num_params: int) -> str:
    """Lay out the same as HTML."""
    head = "".join(f"<th>{heading}</th>" for heading in _HEADINGS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row.cells()) + "</tr>"
        for row in rows
    )
    notes = "".join(
        f"<p>{html.escape(note)}</p>" for note in _notes(name, rows, num_blocks, num_params)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def _notes(name: str, rows: Sequence[TensorBlocks], num_blocks: int, num_params: int) -> list[str]:
    summary = (
        f"{name}: {num_blocks:,} blocks of {num_params:,} parameters; one float32 per block "
        f"{4 * num_blocks / _MIB:,.3g} MiB, per parameter {4 * num_params / _MIB:,.3g} MiB"
    )
    return [*([_ASSUMED] if any(row.is_assumed for row in rows) else []), summary]


def _range(layout: Layout | IndexLayout) -> tuple[int, int]:
    if not layout.num_blocks:
        return 0, 0
    counts = layout.counts(torch.device("cpu"))
    return int(counts.min()), int(counts.max())
