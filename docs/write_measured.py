"""Fill the tables of pages with what benchmarks have measured: `python docs/write_measured.py`.

In a page the lines between `<!-- measured: NAME -->` and `<!-- end -->` are those that NAME gives
here, from results that are committed under benchmarks/results; all else is written by hand.
"""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from rivals import Result, Row, result_path  # noqa: E402  # the line above lets it be found

RESULTS = HERE.parent / "benchmarks" / "results"
NAMES = {  # of what is no package
    "gradient": "one gradient",
    "exact": "the whole Hessian, float64",
    "torch.func": "torch.func, by hand",
    "step alone": "nothing",
    "2-norms": "2-norms alone, by hand",
    "AdamW, fused": "AdamW, fused (torch)",
    "BlockwiseAdam, row": "BlockwiseAdam, row (ours)",
    "BlockwiseAdam, head": "BlockwiseAdam, head (ours)",
}
PAGES = ("compared.md", "choose.md")
SECTION = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def conditions() -> str:
    """Say what the tables of other packages rest on."""
    result = Result.load(result_path("cpu"))
    return (
        f"Measured on {result.date} by `python benchmarks/rivals.py --save` with torch "
        f"{result.versions}\non {result.place}, commit {result.commit}: medians of "
        f"{result.rounds} rounds."
    )


def products() -> str:
    """Products with a Hessian, of each package."""
    rows = [row for row in rivals("products") if row.name != "exact"]
    return table(
        ("", "time, in gradients", "memory, MiB", "error"),
        [(named(row), over(row, rows[0]), mebibytes(row), error(row)) for row in rows],
    )


def eigenvalues() -> str:
    """The largest eigenvalue, as each package computes it."""
    rows = rivals("eigenvalues")
    ours = next(row for row in rows if row.name == "lightning_linf")
    return table(
        ("", "largest absolute eigenvalue", "difference from the exact one", "time, in ours"),
        [
            (
                named(row),
                " to ".join(f"{end:.5g}" for end in row.value or []) or failed(row),
                "" if row.error is None else f"{100 * row.error:+.4f} %",
                over(row, ours),
            )
            for row in rows
        ],
    )


def watching() -> str:
    """What a look at all gradients costs in every step."""
    rows = rivals("watching")
    return table(
        ("looked at in every step by", "time of a step", "beyond a step alone, ms"),
        [(named(row), over(row, rows[0]), beyond(row, rows[0])) for row in rows],
    )


def steps() -> str:
    """Steps of optimizers that keep fewer second moments."""
    rows = rivals("steps")
    return table(
        ("", "time, in steps of fused AdamW", "memory while it steps, MiB"),
        [(named(row), over(row, rows[0]), mebibytes(row)) for row in rows],
    )


def rivals(part: str) -> list[Row]:
    """Give the rows of a part."""
    return Result.load(result_path("cpu")).parts[part]


def named(row: Row) -> str:
    """Give the package with its version, or say what else it is."""
    return NAMES.get(row.name, row.label)


def over(row: Row, base: Row) -> str:
    """Give a time over another."""
    if row.median is None or base.median is None:
        return failed(row)
    return f"{row.median / base.median:.2f}"


def beyond(row: Row, base: Row) -> str:
    """Give a time beyond another, in milliseconds."""
    if row is base or row.median is None or base.median is None:
        return failed(row)
    return f"{1e3 * (row.median - base.median):.1f}"


def mebibytes(row: Row) -> str:
    """Give what a row took of the memory."""
    return failed(row) if row.memory is None else f"{row.memory / 2**20:.0f}"


def error(row: Row) -> str:
    """Give the error of a product."""
    return "" if row.error is None else f"{row.error:.1e}"


def failed(row: Row) -> str:
    """Say that a package has failed, and nothing if it was not asked."""
    return f"failed: {row.failure}" if row.failure else ""


def edges() -> str:
    """Where full-batch runs settled, and how well the stable rate was foretold."""
    settled, _, foretold = (RESULTS / "edge.txt").read_text().partition("largest stable rate")
    runs = re.findall(r"(\d+|never) +(\d\.\d{3}) \(", settled)
    means = [float(mean) for reached, mean in runs if reached != "never"]
    lines = re.findall(r" (\d+) +[\d.]+ +[\d.]+ +([\d.]+) +[\d.]+$", foretold, re.MULTILINE)
    ratios: dict[int, list[float]] = {}
    for step, ratio in lines:
        ratios.setdefault(int(step), []).append(float(ratio))
    rows = [(f"{step:,}", f"{min(each):.2f} to {max(each):.2f}") for step, each in ratios.items()]
    return (
        f"Of {len(runs)} full-batch runs {len(means)} reached the edge, and settled at a mean of "
        f"{min(means):.2f} to {max(means):.2f}.\nThe largest stable rate as measured, over the one "
        f"found by trying, of {len(next(iter(ratios.values())))} optimizers:\n\n"
        + table(("after steps", "measured over tried"), rows)
    )


def partitions() -> str:
    """What a step with each partition costs."""
    text = (RESULTS / "optimizers.txt").read_text()
    times: dict[str, list[str]] = {}
    for name, ratio in re.findall(r"^(.+?) {2,}[\d.]+ +[\d.]+ +([\d.]+) +[\d.]+$", text, re.M):
        times.setdefault(name, []).append(ratio)
    return table(
        ("step of", "without weight decay", "with"),
        [(name, *each) for name, each in times.items() if name != "one copy"],
    )


def predictors() -> str:
    """How well some quantities ordered optimizers on the testing half of the tasks."""
    text = (HERE / "results" / "prediction.md").read_text(encoding="utf-8")
    lines = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    found = {cells[0]: cells for cells in lines if len(cells) == 8}
    names = ("step_advantage", "advantage, from above", "Λ, lower end", "curvature", "noise scale",
             "R²", "order of the other seeds")  # fmt: skip
    return table(
        ("order by", "rho", "rho of finer is better"), [(n, *found[n][3:5]) for n in names]
    )


def lowest() -> str:
    """Which optimizer ended lowest in how many tasks."""
    text = (HERE / "results" / "prediction.md").read_text(encoding="utf-8")
    lines = text.split("## Final losses")[1].splitlines()
    titles, _, *rows = [line.split("|")[1:-1] for line in lines if line.startswith("|")]
    columns = list(zip(titles, *rows, strict=True))[1:]
    return table(
        ("optimizer", "lowest in", "of tasks"),
        [
            (name.strip(), str(sum("**" in cell for cell in cells)),
             str(sum(cell.strip() != "-" for cell in cells)))
            for name, *cells in columns
        ],
    )  # fmt: skip


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


SECTIONS: dict[str, Callable[[], str]] = {
    each.__name__: each
    for each in (
        *(conditions, products, eigenvalues, watching, steps),
        *(edges, partitions, predictors, lowest),
    )
}


def filled(text: str) -> str:
    """Give a page with its sections as they are measured."""
    return SECTION.sub(lambda found: f"{found[1]}\n{SECTIONS[found[2]]()}\n\n{found[3]}", text)


if __name__ == "__main__":
    for name in PAGES:
        page = HERE / name
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
