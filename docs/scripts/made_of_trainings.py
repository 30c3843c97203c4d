"""What pages take from `docs/results.md`."""

import re

from formatting import by_name, table
from read_pages import bullet, bullets, section

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
    line = bullet(study, "Training loss less that of Adam")
    found = re.findall(r"(Above|Below|Not told apart)(?: Adam's)?: (.*?)\.(?= [AN]|$)", line)
    return {
        re.split(r" [+-]\d", each)[0]: words
        for words, listed in found
        for each in listed.split("; ")
    }


def quadratic() -> str:
    """Copy what a rotation of a quadratic did to each optimizer."""
    return "\n".join(f"- {line}" for line in bullets("A rotated quadratic"))


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
    found = [bullet(study, start) for study in _STUDIES]
    return [float(re.findall(r"p = ([\d.]+)", line)[0]) for line in found]


def sgd_rotated() -> str:
    """Give by how much a rotation moved SGD's mean loss at most, in the order of the networks."""
    found = [bullet(study, "SGD with and without rotation") for study in _STUDIES]
    return " and ".join(re.findall(r"by ([\d.e+-]+)\.$", line)[0] for line in found)


def norms_of_rotated_sgd() -> str:
    """Give the (1,1)-norms over d where SGD ended, without and with a rotation."""
    pairs = (
        " to ".join(_row(study, "sgd", f"global, l2{turned}")[8] for turned in ("", ", rotated"))
        for study in _STUDIES
    )
    return " and from ".join(pairs)


def rounding_of_resnet() -> str:
    """Give by how much a move of the initial weights moved the loss of a run, at most."""
    return _by_rounding("ResNet-18")[0]


def rounding_of_resnet_means() -> str:
    """Give the same of the mean over seeds."""
    return _by_rounding("ResNet-18")[1]


def rounding_of_gpt2() -> str:
    """Give the same of a run of the GPT-2."""
    return _by_rounding("GPT-2")[0]


def minutes_of_paper() -> str:
    """Give how long all of it took, in minutes of one core."""
    found = [
        float(minutes)
        for title in ("A rotated quadratic", *_STUDIES)
        for minutes in re.findall(r"([\d.]+) minutes\sof one core", section(title))
    ]
    return f"{sum(found):.0f} minutes"


def _by_rounding(study: str) -> tuple[str, str]:
    """Give the largest change of a run, and of a mean over seeds in brackets."""
    found = re.findall(r" ([\d.e-]+) \(([\d.e-]+)\)", bullet(study, "What rounding does"))
    runs, means = zip(*found, strict=True)
    return max(runs, key=float), max(means, key=float)


def _row(title: str, optimizer: str, geometry: str) -> list[str]:
    """Give the cells of an optimizer in the table of results, whose first is empty."""
    start = f"| {optimizer} | {geometry} | "
    *_, line = (x for x in section(title).splitlines() if x.startswith(start))
    return [cell.strip() for cell in line.split("|")]


def _rho(start: str) -> str:
    found = [bullet(study, start) for study in _STUDIES]
    return " and ".join(re.findall(r"within a seed (-?[\d.]+)", line)[0] for line in found)


PLACES = by_name(
    compared,
    quadratic,
    rho_where_run_ended,
    rho_where_adam_ended,
    rho_finer,
    sgd_rotated,
    norms_of_rotated_sgd,
    rounding_of_resnet,
    rounding_of_resnet_means,
    rounding_of_gpt2,
    minutes_of_paper,
)
