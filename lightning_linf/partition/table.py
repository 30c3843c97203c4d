"""A partition as a table in the terminal."""

from collections import Counter
from collections.abc import Sequence

import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lightning_linf.partition.layouts import IndexLayout, Layout

_MIB = 2**20
_ASSUMED = (
    "*: no module tells which dimension is the output; taken is the first, not counting leading "
    "ones. Say it by output_dims={pattern of its name: dimension}."
)


def table(
    name: str,
    names: Sequence[str],
    shapes: Sequence[torch.Size],
    layouts: Sequence[Layout | IndexLayout],
    num_blocks: int,
) -> Group:
    """Show the blocks of each tensor, which were assumed, and the memory of a float32 per block."""
    # Tensors that share a block have the same first one; those without entries have none at all.
    sharing = Counter(layout.first for layout in layouts if layout.num_blocks)
    entries: Counter[int] = Counter()
    for layout, shape in zip(layouts, shapes, strict=True):
        entries[layout.first] += shape.numel()
    grid = Table("parameter", "shape")
    grid.add_column("blocks", justify="right")
    grid.add_column("entries per block", justify="right")
    grid.columns[0].overflow = "fold"
    for layout, key, shape in zip(layouts, names, shapes, strict=True):
        tensors = sharing[layout.first] if layout.num_blocks else 0
        if tensors > 1:
            blocks, size = f"1, shared by {tensors}", f"{entries[layout.first]:,}"
        else:
            blocks, size = f"{layout.num_blocks:,}", _range(layout)
        mark = " *" if layout.is_assumed else ""
        # As Text, for rich would read "[...]" in a plain name as markup.
        shown = Text(key + mark), Text(str(tuple(shape)))
        grid.add_row(*shown, blocks, size)
    num_params = entries.total()
    summary = (
        f"{name}: {num_blocks:,} blocks of {num_params:,} parameters; one float32 per block "
        f"{4 * num_blocks / _MIB:,.3g} MiB, per parameter {4 * num_params / _MIB:,.3g} MiB"
    )
    notes = [Text(_ASSUMED)] if any(layout.is_assumed for layout in layouts) else []
    return Group(grid, *notes, Text(summary))


def _range(layout: Layout | IndexLayout) -> str:
    if not layout.num_blocks:
        return "none"
    counts = layout.counts(torch.device("cpu"))
    low, high = int(counts.min()), int(counts.max())
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"
