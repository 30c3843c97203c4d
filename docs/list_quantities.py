"""Write docs/quantities.md from the lists in lightning_linf: `python docs/list_quantities.py`."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_linf.partition_names import FINE_TO_COARSE
from lightning_linf.quantities import ALL, MONITORS
from lightning_linf.quantity import Column, Monitor, PartitionScalar, Quantity, Scalar

PAGE = Path(__file__).with_name("quantities.md")
INTRODUCTION = """\
# What is measured

(Made by `python docs/list_quantities.py`.) [estimates.md](estimates.md) says how each number is
estimated, and how well.

*d* is the number of trainable parameters, *g* the gradient and *H* the Hessian of the mean loss.
In a table's row of one tensor, *d* and *g* belong to this tensor alone.

A partition Φ splits the parameters into blocks *b* of *d_b* entries. Φ has a norm
‖x‖_Φ = max_b ‖x_b‖₂ / √d_b, whose dual norm is ‖g‖_Φ* = Σ_b √d_b ‖g_b‖₂. Steepest descent in the
norm of Φ is the step of blockwise Adam without averages over time: this is the *geometry* of Φ.
N(Φ) = max ‖Hv‖_Φ* over ‖v‖_Φ ≤ 1 is the largest curvature that such a step can meet, and
‖g‖_Φ*² / (2 N(Φ)) is the decrease of the loss by the best step that meets it, to second order. The
blockwise smoothness H(Φ) is an upper bound of N(Φ). H(`coordinate`) is the (1,1)-norm Σᵢⱼ |Hᵢⱼ|;
N(`global`) and H(`global`) are both d max |λᵢ(H)|. The adaptive smoothness Λ(Φ) is the least
Σ_b d_b s_b of all s for which S − H and S + H have no negative eigenvalue, S being the diagonal
matrix of the s_b of each entry's block. Of the two, N(Φ) is in the theory of steepest descent and
Λ(Φ) ≥ N(Φ) in that of blockwise Adam ([arXiv:2511.20584](https://arxiv.org/abs/2511.20584));
Λ(`global`) = N(`global`).

`spectral` is measured where it is asked for, and is no partition: it is the geometry of Muon.
‖x‖ is then the largest of σ_max(W) / √max(m, n) over the hidden matrices W of m rows and n columns
and of |x_i| over all other entries; ‖g‖* is the sum of √max(m, n) Σᵢ σᵢ(G) and of |g_i|. Of the
quantities below it has `step_advantage`, `operator_norm_lower` and `operator_norm_upper`. The last
is that of a partition into whole tensors, whose steps include all of this geometry's.

A quantity *of* the model or a partition is logged as a scalar under its tag, for example
`geometry/density` or `geometry/noise/row`. A quantity *of* a tensor is a column of a table, with
one row for each parameter tensor, in `geometry.jsonl` and in event files. A quantity without a unit
is a pure number.
"""


def page() -> str:
    """Write the page."""
    partitions = _table(
        ("partition", "a block is", "geometry of"),
        (
            (f"`{name}`", meaning.block, meaning.optimizer.replace("block", "Adam, block"))
            for name, meaning in FINE_TO_COARSE.items()
        ),
    )
    sections = [_section(monitor) for monitor in MONITORS]
    return "\n".join([INTRODUCTION, partitions, *sections])


def _section(monitor: Monitor) -> str:
    mine = [quantity for quantity in ALL if quantity.monitors[0] == monitor]
    rows = ((_name(each), _of_what(each), each.unit, each.meaning) for each in mine)
    section = f"## {monitor.name}\n\n{_table(('tag', 'of', 'unit', 'meaning'), rows)}"
    also = [_name(each) for each in ALL if monitor in each.monitors[1:]]
    if also:
        section += (
            f"\nAlso {', '.join(also)}, if there are several batches (or ranks) and no other "
            "monitor measures these.\n"
        )
    if monitor.per_optimizer:
        section += (
            "\nWith several optimizers, tags end in `/optimizer0`, `/optimizer1` and so on.\n"
        )
    return section + f"\nThe table `{monitor.record_tag}` has one row for each parameter tensor.\n"


def _name(quantity: Quantity) -> str:
    return f"`{quantity.name}{'/Φ' if isinstance(quantity, PartitionScalar) else ''}`"


def _of_what(quantity: Quantity) -> str:
    kinds = {PartitionScalar: "partition", Scalar: "model", Column: "tensor"}
    return ", ".join(words for kind, words in kinds.items() if isinstance(quantity, kind))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
