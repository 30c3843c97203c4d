"""Take the pictures of the gallery: of each page the panels that its words are about.

    python docs/scripts/gallery_pictures.py [FOLDER]

Makes the pages from the kept records and looks at them with Chromium. The pictures go to
docs/pictures; given a FOLDER, both themes of every whole page go there, to be looked at.
"""

import sys
import tempfile
from pathlib import Path

from screenshots import save

DOCS = Path(__file__).parents[1]
sys.path.insert(0, str(DOCS.parent / "recipes"))  # whose pages these are

from support.chromium import READY, Page, chromium  # noqa: E402  # screenshots.py has found it

from exhibits import pages  # noqa: E402  # found there

WIDTH = 1280
# By page, the panels that its picture begins and ends with.
SHOWN = {
    "gpt2": ("verdict", "verdict"),
    "resnet": ("loss", "edge"),
    "vit": ("heatmap", "bars"),
    "rotated": ("smoothness", "smoothness"),
    "diverging": ("loss", "edge"),
}


def open_whole(page: Page, path: Path, theme: str) -> None:
    """Open a page in a window as tall as it is."""
    page.prefer(theme)
    page.size(WIDTH)
    page.open(path.resolve().as_uri())
    page.wait(READY)
    page.size(WIDTH, page.run("document.documentElement.scrollHeight"))


def box_of(page: Page, ids: tuple[str, ...], margin: int = 8) -> dict[str, float]:
    """Give the smallest place that holds these panels and those in their rows."""
    left, top, right, bottom = page.run(f"""(() => {{
        const boxes = {list(ids)}.map((id) => document.getElementById(id).getBoundingClientRect());
        const main = document.querySelector("main").getBoundingClientRect();
        const [top, bottom] = [
            Math.min(...boxes.map((box) => box.top)), Math.max(...boxes.map((box) => box.bottom)),
        ];
        const panels = [...document.querySelectorAll("main .panel")]
            .map((panel) => panel.getBoundingClientRect())
            .filter((box) => box.top < bottom && box.bottom > top && box.height <= bottom - top);
        return [
            Math.min(...panels.map((box) => box.left)), top + scrollY,
            Math.max(...panels.map((box) => box.right)), bottom + scrollY,
        ];
    }})()""")
    return {
        "x": left - margin, "y": top - margin, "width": right - left + 2 * margin,
        "height": bottom - top + 2 * margin, "scale": 1,
    }  # fmt: skip


def main(folder: str | None = None) -> None:
    """Take them all."""
    with tempfile.TemporaryDirectory() as scratch:
        made = pages.write_pages(Path(scratch))
        with chromium(Path(scratch)) as page:
            for path in made:
                for theme in ("light", "dark") if folder else ():
                    open_whole(page, path, theme)
                    Path(folder, f"{path.stem}-{theme}.png").write_bytes(page.screenshot())
                open_whole(page, path, "light")
                clip = box_of(page, SHOWN[path.stem])
                save(page.screenshot(clip=clip), DOCS / "pictures" / f"gallery-{path.stem}.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
