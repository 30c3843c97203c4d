"""What pages take from `docs/results.md` and `results/prediction.md`, by the name of its place."""

import re
from pathlib import Path

from in_markdown import by_name, table

HERE = Path(__file__).resolve().parent
_STUDIES = ("GPT-2", "ResNet-18")
# By the words of a table, and by those of the sentence that says what is shown.
_OTHERS = {
    ("adam", "coordinate, rotated"): "rotated Adam",
    ("blockwise_adam", "tensor"): "blockwise Adam (tensor)",
    ("adasgd", "global"): "AdaSGD",
    ("sgd", "global, l2"): "SGD",
}
_SHOWN = {"Above": "above Adam", "Below": "below Adam", "Not told apart": "not told apart"}


def compared() -> str:
    """Write what both networks show of the losses, and norms of Hessians."""
    rows = [
        ["Adam", *("–" for _ in _STUDIES), *(_row(s, "adam", "coordinate")[8] for s in _STUDIES)]
    ]
    for key, name in _OTHERS.items():
        found = [_row(study, *key) for study in _STUDIES]
        cells = (
            f"{row[5]}: {_SHOWN[shown(study)[name]]}"
            for study, row in zip(_STUDIES, found, strict=True)
        )
        rows.append([name, *cells, *(row[8] for row in found)])
    titles = (
        "optimizer",
        *(f"{study}: loss less Adam's (95 %)" for study in _STUDIES),
        *(f"{study}: (1,1)-norm/d at its end" for study in _STUDIES),
    )
    return table(titles, rows)


def shown(study: str) -> dict[str, str]:
    """Tell for each optimizer which words the page has for its loss beside Adam's."""
    line = _bullet(study, "Training loss less that of Adam")
    found = re.findall(r"(Above|Below|Not told apart)(?: Adam's)?: (.*?)\.(?= [AN]|$)", line)
    return {
        re.split(r" [+-]\d", each)[0]: words
        for words, listed in found
        for each in listed.split("; ")
    }


def quadratic() -> str:
    """Copy what a rotation of a quadratic did to each optimizer."""
    return "\n".join(f"- {line}" for line in _bullets("A rotated quadratic"))


def rho_where_run_ended() -> str:
    """Give the rank correlations of H(Φ) at each run's end with its loss."""
    return _rho("H(Phi) where each run ended")


def rho_where_adam_ended() -> str:
    """Give the rank correlations of H(Φ) at the end of Adam's runs with the losses."""
    return _rho("H(Phi) where Adam's run ended")


def rho_finer() -> str:
    """Give those of the guess that needs no measurement."""
    return _rho('The guess "finer is better"')


def p_values(start: str) -> list[float]:
    """Give the p of both networks' rank correlations of a sentence that begins so."""
    found = [_bullet(study, start) for study in _STUDIES]
    return [float(re.findall(r"p = ([\d.]+)", line)[0]) for line in found]


def sgd_rotated() -> str:
    """Give by how much a rotation moved SGD's mean loss at most, in the order of the networks."""
    found = [_bullet(study, "SGD with and without rotation") for study in _STUDIES]
    return " and ".join(re.findall(r"by ([\d.e+-]+)\.$", line)[0] for line in found)


def norms_of_rotated_sgd() -> str:
    """Give the (1,1)-norms over d where SGD ended, without and with a rotation."""
    pairs = (
        " to ".join(_row(study, "sgd", f"global, l2{turned}")[8] for turned in ("", ", rotated"))
        for study in _STUDIES
    )
    return " and from ".join(pairs)


def prediction() -> str:
    """Copy what may be concluded of predictions."""
    page = (HERE / "results" / "prediction.md").read_text(encoding="utf-8")
    section = page.split("## What may and may not be concluded\n")[1].split("\n## ")[0]
    return section.strip()


def _section(title: str) -> str:
    page = (HERE / "results.md").read_text(encoding="utf-8")
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _bullets(title: str) -> list[str]:
    return re.findall(r"^- (.+)$", _section(title), re.MULTILINE)


def _bullet(title: str, start: str) -> str:
    (line,) = (line for line in _bullets(title) if line.startswith(start))
    return line


def _row(title: str, optimizer: str, geometry: str) -> list[str]:
    """Give the cells of an optimizer in the table of results, whose first is empty."""
    start = f"| {optimizer} | {geometry} | "
    *_, line = (x for x in _section(title).splitlines() if x.startswith(start))
    return [cell.strip() for cell in line.split("|")]


def _rho(start: str) -> str:
    found = [_bullet(study, start) for study in _STUDIES]
    return " and ".join(re.findall(r"within a seed (-?[\d.]+)", line)[0] for line in found)


PLACES = by_name(
    compared,
    quadratic,
    rho_where_run_ended,
    rho_where_adam_ended,
    rho_finer,
    sgd_rotated,
    norms_of_rotated_sgd,
    prediction,
)
