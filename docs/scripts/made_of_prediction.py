"""What pages take from `docs/results/prediction.md` and its protocol."""

from formatting import by_name, table
from read_pages import DOCS, cells, section

_RESULT = "results/prediction.md"
_PROTOCOL = "results/prediction-protocol.md"
_PREDICTORS = (
    *("step_advantage", "advantage, from above", "Λ, lower end", "curvature", "noise scale", "R²"),
    "order of the other seeds",
)


def prediction() -> str:
    """Copy what may be concluded of predictions."""
    return section("What may and may not be concluded", _RESULT).strip()


def predictors() -> str:
    """Write how well some quantities ordered optimizers on the testing half of the tasks."""
    _, *lines = cells(section("How well each orders the optimizers", _RESULT))
    found = {name.strip("*"): [name.strip("*"), *cells[2:4]] for name, *cells in lines}
    titles = ("order by", "rho", "rho of finer is better")
    return table(titles, [found[name] for name in _PREDICTORS])


def lowest_losses() -> str:
    """Write which optimizer ended lowest in how many tasks."""
    _, *columns = zip(*cells(section("Final losses", _RESULT)), strict=True)
    rows = [
        (name, str(sum("**" in loss for loss in losses)), str(sum(loss != "-" for loss in losses)))
        for name, *losses in columns
    ]
    return table(("optimizer", "lowest in", "of tasks"), rows)


def sizes_of_tasks() -> str:
    """Give the least and the most parameters of a task."""
    found = sorted((row[2] for row in _tasks()), key=lambda cell: int(cell.replace(",", "")))
    return f"{found[0]} to {found[-1]}"


def steps_of_tasks() -> str:
    """Give the least and the most steps of a task."""
    found = [int(row[4]) for row in _tasks()]
    return f"{min(found)} to {max(found)}"


def advice(name: str) -> list[str]:
    """Give of an advice: cases on the choosing half, those kept; the same of the testing half."""
    (row,) = (row for row in cells(section("Advice", _RESULT)) if row[0] == name)
    return row[1:]


def row_while_choosing() -> str:
    """Count the cases of the choosing half in which blocks by row kept Adam's lead."""
    return _kept("row", 0)


def row_while_testing() -> str:
    """Count those of the testing half."""
    return _kept("row", 2)


def tensor_while_choosing() -> str:
    """Count the cases of the choosing half in which blocks by tensor kept Adam's lead."""
    return _kept("tensor", 0)


def tensor_while_testing() -> str:
    """Count those of the testing half."""
    return _kept("tensor", 2)


def _tasks() -> list[list[str]]:
    text = (DOCS / _PROTOCOL).read_text(encoding="utf-8")
    return cells(text.split("**Optimizers**")[0])[1:]


def _kept(partition: str, half: int) -> str:
    cases, kept = advice(f"always {partition}")[half : half + 2]
    return f"{kept} of {cases.split(' of ')[1]}"


PLACES = by_name(
    prediction,
    predictors,
    lowest_losses,
    sizes_of_tasks,
    steps_of_tasks,
    row_while_choosing,
    row_while_testing,
    tensor_while_choosing,
    tensor_while_testing,
)
