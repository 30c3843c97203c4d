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


def page(name: str) -> str:
    """Make a page as `lightning-linf report` would, from the records that are kept."""
    return make_page(load([RUNS / run for run in PAGES[name]]))


def write_pages(target: Path = GALLERY) -> list[Path]:
    """Write each page as NAME.html into a folder."""
    paths = [target / f"{name}.html" for name in PAGES]
    for path in paths:
        path.write_text(page(path.stem), encoding="utf-8")
    return paths
