"""The pages of the gallery: the reports of its runs."""

from pathlib import Path

from lightning_linf.html.page import make_page
from lightning_linf.runs.load import load

GALLERY = Path(__file__).resolve().parents[2] / "docs" / "gallery"
RUNS = GALLERY / "runs"
# By name, the runs that a page shows.
PAGES = {
    "gpt2": ("gpt2",),
    "resnet": ("resnet",),
    "vit": ("vit",),
    "rotated": ("gpt2", "gpt2-rotated"),
    "diverging": ("diverging",),
}


def write_pages(target: Path = GALLERY) -> list[Path]:
    """Write each page as NAME.html into a folder, as `lightning-linf report` would."""
    paths = []
    for name, runs in PAGES.items():
        path = target / f"{name}.html"
        path.write_text(make_page(load([RUNS / run for run in runs])), encoding="utf-8")
        paths.append(path)
    return paths
