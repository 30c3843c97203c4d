"""Take the pictures of the panels: those of the documentation, and all in both themes and widths.

    python docs/scripts/screenshots.py [FOLDER]

Trains the runs of demo_runs.py into FOLDER/runs unless they are there (two minutes), starts
TensorBoard on them and looks at it with Chromium. The pictures of README.md go to docs/, those of
panels.md to docs/pictures/, all others to FOLDER (runs/screenshots by default).
"""

import sys
from io import BytesIO
from pathlib import Path

import demo_runs
from PIL import Image

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS.parent / "tests"))  # whose browser and TensorBoard these are

from support.chromium import READY, Page, chromium  # noqa: E402  # found there
from support.tensorboard_process import tensorboard  # noqa: E402

PANELS = (
    *("verdict", "loss", "learning-rate", "edge", "best-step", "gain", "noise"),
    *("smoothness", "heatmap", "bars", "layer", "fan"),
)
WIDTHS = {"wide": 1280, "narrow": 600}
# Those of panels.md: by panel the theme, and what is chosen on the page.
PICTURES = {
    "verdict": ("light", "runs=adam"),
    "loss": ("light", "loss.smooth=0.6"),
    "learning-rate": ("light", ""),
    "edge": ("light", ""),
    "best-step": ("light", ""),
    "gain": ("light", ""),
    "noise": ("light", "runs=adam"),
    "smoothness": ("dark", ""),
    "heatmap": ("dark", "layers.run=adam&layers.unfolded=blocks.0&layers.grouped=true"),
    "bars": ("light", "layers.run=adam&layers.beside=run%3Asgd&layers.order=value"),
    "layer": ("light", "layer=head.weight"),
    "fan": ("dark", "fan.run=adam"),
}


def save(png: bytes, path: Path) -> None:
    """Write it as small as PNG can be."""
    image = Image.open(BytesIO(png)).convert("RGB")
    # This method keeps the colours of small marks; k-means puts those of large areas right.
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)
    image.save(path, optimize=True)
    print(f"{path}: {image.width} x {image.height}, {path.stat().st_size / 1000:.0f} kB")


def box_of(page: Page, selector: str, margin: int = 12) -> dict[str, float]:
    """Give the place of an element on the whole page."""
    box = page.run(f"""(() => {{
        const box = document.querySelector("{selector}").getBoundingClientRect();
        return [box.x + scrollX, box.y + scrollY, box.width, box.height];
    }})()""")
    x, y, width, height = box
    return {
        "x": x - margin, "y": y - margin, "width": width + 2 * margin,
        "height": height + 2 * margin, "scale": 1,
    }  # fmt: skip


def take_all(page: Page, address: str, folder: Path) -> None:
    """Take the whole page and each panel, for each theme and width."""
    for theme in ("light", "dark"):
        for name, width in WIDTHS.items():
            page.size(width)
            page.prefer(theme)
            page.open(address)
            page.wait(READY)
            height = page.run("document.documentElement.scrollHeight")
            page.size(width, height)
            save(page.screenshot(), folder / f"all-{theme}-{name}.png")
            for panel in PANELS:
                clip = box_of(page, f"#{panel}")
                save(page.screenshot(clip=clip), folder / f"{panel}-{theme}-{name}.png")


def take_panels(page: Page, address: str, folder: Path) -> None:
    """Take each panel as panels.md shows it."""
    folder.mkdir(exist_ok=True)
    for panel, (theme, words) in PICTURES.items():
        page.prefer(theme)
        page.size(1280)
        page.open("about:blank")
        page.open(f"{address}#{words}")
        page.wait(READY)
        page.size(1280, page.run("document.documentElement.scrollHeight"))
        save(page.screenshot(clip=box_of(page, f"#{panel}")), folder / f"panel-{panel}.png")


def take_tab(page: Page, address: str, path: Path) -> None:
    """Take the tab as it stands in TensorBoard, in light colours, a value under the cursor."""
    frame = "document.querySelector('iframe').contentDocument"
    page.prefer("light")
    page.size(1280, 1340)
    page.open(f"{address}#geometry")
    page.wait(f"document.querySelector('iframe') && {frame}.querySelector('#fan canvas')")
    page.wait(f"!{frame}.querySelector('main[aria-busy]')")
    page.move(1010, 1050)
    save(page.screenshot(), path)


def take_layers(page: Page, address: str, path: Path) -> None:
    """Take the panels of layers in dark colours."""
    page.prefer("dark")
    page.size(1280, 1000)
    page.open(address)
    page.wait(READY)
    page.size(1280, page.run("document.documentElement.scrollHeight"))
    box = page.run("document.querySelector('#heatmap canvas').getBoundingClientRect().toJSON()")
    page.move(box["x"] + 0.45 * box["width"], box["y"] + 130)
    save(page.screenshot(clip=box_of(page, ".layers")), path)


def main(folder: str = "runs/screenshots") -> None:
    """Take them all."""
    target = Path(folder)
    runs = target / "runs"
    if not runs.is_dir():
        demo_runs.main(str(runs))
    with (
        tensorboard(runs, target / "tensorboard.txt", load_fast="false") as board,
        chromium(target) as page,
    ):
        board.wait_until_read(runs)
        take_tab(page, board.address, DOCS / "geometry-tab.png")
        take_layers(page, board.entry, DOCS / "geometry-layers.png")
        take_panels(page, board.entry, DOCS / "pictures")
        take_all(page, board.entry, target)


if __name__ == "__main__":
    main(*sys.argv[1:2])
