"""Train the runs of the gallery, and make its pages.

    python recipes/gallery.py               # as `make gallery`: trains what is not there yet
    python recipes/gallery.py --again vit   # trains a run anew: gpt2, gpt2-rotated, resnet, ...
    python recipes/gallery.py --only-pages  # makes the pages again, in seconds

The records of finished runs are kept in docs/gallery/runs, so an interrupted call goes on with the
run that it was at. From them docs/gallery/index.md and a page for each entry, docs/gallery/*.html,
are made; docs/scripts/gallery_pictures.py takes their pictures. A run repeats bit by bit on one
machine, but for what the clock says.
"""

import requirements  # noqa: F401  # first of all, to say what is missing

# isort: split
import argparse

from exhibits import pages, words


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--again", nargs="+", default=[], metavar="RUN", help="train these anew")
    parser.add_argument("--only-pages", action="store_true", help="train nothing")
    choices = parser.parse_args()
    if not choices.only_pages:
        train(choices.again)
    for page in pages.write_pages():
        print(f"Page: {page}, {page.stat().st_size / 1000:.0f} kB")
    words.INDEX.write_text(words.index(), encoding="utf-8")
    print(f"Written: {words.INDEX}")


def train(again: list[str]) -> None:
    """Train what is not kept, and those named."""
    # Not at the top: pages need neither torch's recipes nor their libraries.
    from exhibits.entries import TRAININGS
    from exhibits.watch import is_kept, watch

    names = [training.config.name for training in TRAININGS]
    if unknown := set(again) - set(names):
        raise SystemExit(f"again: expected some of {', '.join(names)}, got {', '.join(unknown)}.")
    for training in TRAININGS:
        folder = pages.RUNS / training.config.name
        if training.config.name in again or not is_kept(training, folder):
            print(f"Training: {training.config.name}", flush=True)
            watch(training, folder)


if __name__ == "__main__":
    main()
