"""What pages take from results about other packages, beside ours."""

import sys
from pathlib import Path

from formatting import by_name, table

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from rival_result import Result, Row, result_path  # the line above lets it be found

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


def conditions_of_rivals() -> str:
    """Say what the tables of other packages rest on."""
    result = Result.load(result_path("cpu"))
    return (
        f"Measured on {result.date} by `python benchmarks/rivals.py --save` with torch "
        f"{result.versions}\non {result.place}, commit {result.commit}: medians of "
        f"{result.rounds} rounds."
    )


def products_of_rivals() -> str:
    """Write what a product with the Hessian took with each package."""
    rows = [row for row in rivals("products") if row.name != "exact"]
    return table(
        ("", "time, in gradients", "memory, MiB", "error"),
        [(named(row), over(row, rows[0]), mebibytes(row), error(row)) for row in rows],
    )


def product_by_hand() -> str:
    """Give what a product without a kept graph took, by torch.func."""
    gradient, *rows = rivals("products")
    (by_hand,) = (row for row in rows if row.name == "torch.func")
    return over(by_hand, gradient)


def farthest_eigenvalue() -> str:
    """Give the largest difference from the exact eigenvalue."""
    errors = [abs(row.error) for row in rivals("eigenvalues") if row.error is not None]
    return f"{100 * max(errors):.1f} %"


def eigenvalues_of_rivals() -> str:
    """Write the largest eigenvalue as each package computes it."""
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


def watching_of_rivals() -> str:
    """Write what a look at all gradients in every step costs."""
    rows = rivals("watching")
    return table(
        ("looked at in every step by", "least time of a step, ms", "beyond a step alone, ms"),
        [(named(row), milliseconds(row), beyond(row, rows[0])) for row in rows],
    )


def steps_of_rivals() -> str:
    """Write what steps of optimizers with fewer second moments cost."""
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


def milliseconds(row: Row) -> str:
    """Give the least time of all rounds, which other work on the machine moves least."""
    return failed(row) if row.least is None else f"{1e3 * row.least:.0f}"


def beyond(row: Row, base: Row) -> str:
    """Give a least time beyond another, in milliseconds."""
    if row is base or row.least is None or base.least is None:
        return failed(row)
    return f"{1e3 * (row.least - base.least):.0f}"


def mebibytes(row: Row) -> str:
    """Give what a row took of the memory."""
    return failed(row) if row.memory is None else f"{row.memory / 2**20:.0f}"


def error(row: Row) -> str:
    """Give the error of a product."""
    return "" if row.error is None else f"{row.error:.1e}"


def failed(row: Row) -> str:
    """Say that a package has failed, and nothing if it was not asked."""
    return f"failed: {row.failure}" if row.failure else ""


PLACES = by_name(
    conditions_of_rivals,
    products_of_rivals,
    product_by_hand,
    farthest_eigenvalue,
    eigenvalues_of_rivals,
    watching_of_rivals,
    steps_of_rivals,
)
