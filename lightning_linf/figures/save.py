"""Draw the figures of runs, and write them."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from lightning_linf.figures import curves, layers
from lightning_linf.report import files
from lightning_linf.runs.run import Run

_FIGURES = {  # by the name of their panel, but for the losses
    "verdict": curves.draw_verdict,
    "smoothness": curves.draw_smoothness,
    "heatmap": layers.draw_heatmap,
    "bars": layers.draw_bars,
    "fan": layers.draw_fan,
    "losses": curves.draw_losses,
}
_SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": "medium",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.markersize": 4,
    "pdf.fonttype": 42,  # publishers refuse matplotlib's default, Type 3
    "svg.fonttype": "none",  # text stays text, which can be searched and edited
    "text.parse_math": False,  # a name may have dollar signs
}
_DPI = 200


def save_figures(runs: Sequence[Run], folders: Mapping[str, Path]) -> list[Path]:
    """Draw each panel that has data into a file.

    Args:
        runs: What is shown; several are compared with each other.
        folders: By format ("png", "svg" or "pdf") where to put the files; made if need be.

    Returns:
        The files.

    Raises:
        OutputError: If one of the files would replace anything but a file.
    """
    paths = []
    with matplotlib.rc_context(_SETTINGS):
        for name, draw in _FIGURES.items():
            figure = draw(runs)
            if figure is None:
                continue
            for kind, folder in folders.items():
                content = io.BytesIO()
                figure.savefig(content, format=kind, dpi=_DPI)
                path = folder / f"{name}.{kind}"
                files.write_atomically(path, content.getvalue(), "report: expected the figure")
                paths.append(path)
    return paths
