"""Run the three recipes at their small sizes and write docs/results.md from their results.

    python recipes/paper.py            # as `make paper`: under 40 minutes on two CPU cores
    python recipes/paper.py --only resnet.py    # one of the recipes, and the page
    python recipes/paper.py --page     # only write the page again, from docs/results/*.json

Where torch finds a CUDA device, the preset `small` of the GPT-2 is compared on it, too. Finished
runs are kept under runs/paper, so an interrupted call goes on where it stopped.
"""

import requirements  # noqa: F401  # first of all, to say what is missing

# isort: split
import argparse
import json
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comparison.figures import draw_comparison, draw_quadratic
from comparison.sentences import seeds_sentences
from comparison.tables import seeds_rows
from prediction.markdown import paragraph, table
from quadratic import METHODS
from quadratic import sentences as quadratic_sentences

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
RUNS = "runs/paper"
# With 7 added to 3, the sweep of an optimizer ends at 10 rates, wherever the best one is.
_SWEEP = f"--widen 7 --runs-dir {RUNS}"
_CPU = f"--jobs 2 --accelerator cpu {_SWEEP}"


@dataclass(frozen=True)
class Study:
    """A command, and the results that it leaves.

    Args:
        title: Heading on the page.
        about: What is studied, in a sentence or two.
        command: The recipe and its flags.
        name: Of the results on the page.
        folder: Of the results under ``RUNS``.
    """

    title: str
    about: str
    command: str
    name: str
    folder: str


QUADRATIC = Study(
    "A rotated quadratic",
    "x^T H x / 2 with ten eigenvalues 1 and then 1/k^2, in coordinates turned by exp(t M); every "
    "optimizer at the best constant learning rate of its grid. All is deterministic but for one "
    "draw of M and of the start, so the rates are those of the problem that is shown.",
    f"quadratic.py --runs-dir {RUNS}",
    "quadratic",
    "quadratic",
)
GPT2 = Study(
    "GPT-2",
    "The preset tiny: 370k parameters, on the sources of Python's standard library.",
    "gpt2.py compare --name gpt2 --variants control --batch-size 16 --micro-batch 8 "
    f"--num-probes 8 --sweep-seeds 2 --seeds 3 --rounding 1 {_CPU}",
    "gpt2",
    "gpt2",
)
RESNET = Study(
    "ResNet-18",
    "A thin ResNet-18 on scikit-learn's handwritten digits. Such trainings enlarge rounding: "
    "`tests/recipes/test_recipe_resnet.py` holds SGD and rotated SGD to be equal to rounding for "
    "the first steps, no longer.",
    "resnet.py compare --name resnet --batch-sizes [16] --variants control --max-steps 100 "
    f"--num-probes 8 --sweep-seeds 3 --seeds 5 --rounding 5 {_CPU}",
    "resnet",
    "resnet-batch16",
)
GPT2_CUDA = Study(
    "GPT-2, preset small, on a GPU",
    "14M parameters.",
    "gpt2.py compare --preset small --name gpt2-small --sweep-seeds 2 --seeds 3 --rounding 1 "
    f"--accelerator gpu {_SWEEP}",
    "gpt2-small",
    "gpt2-small",
)
STUDIES = (QUADRATIC, GPT2, RESNET, GPT2_CUDA)
_PREFACE = (
    "Written by `make paper` from the logs in `docs/results`; no result here is typed. The claims "
    "are those of [Xie, Mohamadi & Li](https://arxiv.org/abs/2410.08198): Adam loses by a rotation "
    "of the coordinates, SGD does not, and what an optimizer loses follows the smoothness H(Φ) of "
    "its own geometry. Their figures, of far larger trainings, are not repeated here. These runs "
    "are small and short and their seeds few, so they are reported as they came out, for the "
    "claims or against them.",
    "**Runs.** All of a study have the same data in the same order, initial weights, warm-up, "
    "cosine and number of steps, and no weight decay, whose meaning differs between geometries. A "
    "training loss is the mean of the last 20 steps.",
    "**Rates** are a factor 2 apart: three for each optimizer, then one beyond the best while that "
    "is the largest or the smallest, up to ten. The best has the least mean training loss over the "
    "seeds of the sweep, and the table of results comes from other seeds. Of an optimizer whose "
    "best rate is still an end of those tried, marked by a star, nothing is concluded. A finer "
    "grid, or more seeds, can choose another rate.",
    "**Chance.** Optimizers are compared within a seed, and n is the number of seeds: seeds of one "
    "optimizer are no further optimizers. An interval is Student's, of differences by seed, and "
    "each holds for itself: of twenty, one misses by chance. It includes what rounding does, which "
    "differs from seed to seed. Shaken runs begin with every initial weight moved to the next "
    "number of its type, as by rounding; where several seeds have one, an optimizer is called "
    "above or below Adam only if the runs show it shaken and not. Spearman's rho is 1 where a "
    "smaller H(Φ) always ends lower.",
    "**Geometry.** H(Φ) is that of the optimizer's own partition Φ in its own coordinates: the "
    "(1,1)-norm for Adam, d λ_max for AdaSGD and SGD, an upper bound of it for blocks. At the end "
    "of each run it also tells where the optimizer went, so all of them are measured at the end of "
    "Adam's runs, too. It is that of the loss on one micro-batch, whose (1,1)-norm is above that "
    "of all data.",
    "Batches of 64, weaker rotations and more kinds of blocks are left out: with tuned rates they "
    "take longer than they tell. `compare --variants all` and `--batch-sizes` run them.",
)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--page", action="store_true", help="only write the page again")
    parser.add_argument("--only", help="a recipe, such as resnet.py")
    choices = parser.parse_args()
    for study in () if choices.page else STUDIES:
        is_chosen = choices.only in (None, study.command.partition(" ")[0])
        is_possible = study is not GPT2_CUDA or torch.cuda.is_available()
        if is_chosen and is_possible:
            make(study)
    draw()
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")
    print(f"Written: {PAGE}")


def make(study: Study) -> None:
    """Run a command, and keep its results in `docs/results`."""
    recipe, *flags = shlex.split(study.command)
    subprocess.run([sys.executable, f"recipes/{recipe}", *flags], cwd=ROOT, check=True)
    FOLDER.mkdir(parents=True, exist_ok=True)
    log = "quadratic.json" if study is QUADRATIC else "comparison.json"
    text = (ROOT / RUNS / study.folder / log).read_text(encoding="utf-8")
    (FOLDER / f"{study.name}.json").write_text(text, encoding="utf-8")


def draw() -> None:
    """Draw the figures of the results that are there."""
    for study in STUDIES:
        if (record := _record(study)) is not None:
            path = FOLDER / f"{study.name}.png"
            if study is QUADRATIC:
                draw_quadratic(record["rows"], path)
            else:
                draw_comparison(record, path)


def page() -> Iterator[str]:
    """Write the page, line by line."""
    yield "# Results"
    for text in _PREFACE:
        yield from paragraph(text)
    for study in STUDIES:
        yield from ("", f"## {study.title}")
        yield from paragraph(study.about)
        yield from ("", f"    python recipes/{study.command}")
        record = _record(study)
        if record is None:
            found = ": `make paper` found no CUDA device" if study is GPT2_CUDA else ""
            yield from paragraph(f"Not run{found}.")
            continue
        versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
        yield from paragraph(f"With {versions}. {_cost(study, record)}")
        yield from _quadratic(record) if study is QUADRATIC else _comparison(study.name, record)


def _record(study: Study) -> Any:
    path = FOLDER / f"{study.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _cost(study: Study, record: Mapping[str, Any]) -> str:
    """Add up the time of the runs, which may have been made by several calls."""
    if study is QUADRATIC:
        return f"{record['core_seconds'] / 60:.1f} minutes of one core."
    runs = [
        run
        for variant in record["variants"]
        for outcomes in (*(rate["outcomes"] for rate in variant["sweep"]), variant["seeds"],
                         variant["shaken"])
        for run in outcomes
    ]  # fmt: skip
    minutes = sum(run["core_seconds"] for run in runs) / 60
    return f"{len(runs)} runs, {minutes:.0f} minutes of one core with their measurements."


def _quadratic(record: Mapping[str, Any]) -> Iterator[str]:
    rows = record["rows"]
    yield from ("", "![Final loss of each optimizer against the (1,1)-norm](results/quadratic.png)")
    yield from table(
        ["t", *(f"{row['t']:g}" for row in rows)],
        [
            ["(1,1)-norm / d", *(f"{row['one_one_norm_per_param']:.3g}" for row in rows)],
            *(
                [method.name, *(_loss(row["best"][method.name]) for row in rows)]
                for method in METHODS
            ),
        ],
    )
    yield ""
    yield from (f"- {sentence}" for sentence in quadratic_sentences(rows, record["control"]))


def _loss(best: Mapping[str, Any]) -> str:
    return f"{best['loss']:.3g} (lr {best['lr']:.3g}{' *' if best['is_end'] else ''})"


def _comparison(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    config, options = record["config"], record["options"]
    clip, first, num_swept = config["gradient_clip_val"], config["seed"], options["sweep_seeds"]
    clipping = (
        f"Gradients whose norm is above {clip:g} are scaled down to it; where all are, SGD is "
        "normalized, too"
        if clip
        else "Gradients are not clipped"
    )
    yield from paragraph(
        f"{config['max_steps']} steps of {config['batch_size']} samples, the first "
        f"{config['warmup_steps']} of them with a rising rate. {clipping}."
    )
    yield from paragraph(
        f"Training losses of the sweep by learning rate, mean over seeds {first} to "
        f"{first + num_swept - 1}; the best in bold. Rotated SGD takes the rate of SGD."
    )
    yield from table(
        ["optimizer", "geometry", "learning rate: training loss"],
        [[variant["optimizer"], variant["geometry"], _rates(variant)]
         for variant in record["variants"]],
    )  # fmt: skip
    yield from paragraph(
        f"At the best of them with seeds {first + num_swept} to "
        f"{first + num_swept + options['seeds'] - 1} (n = {options['seeds']}): training loss ± "
        "standard deviation, the same less that of Adam with the same seed (95 % interval), share "
        "of steps that were clipped, and the geometry at the end, mean over seeds, in the "
        "coordinates that the optimizer saw:"
    )
    yield from table(
        ["optimizer", "geometry", "rate", "training loss", "less Adam's", "validation loss",
         "clipped", "(1,1)-norm / d", "λ_max", "H(Φ) / d"],
        seeds_rows(record),
    )  # fmt: skip
    seen = "Training loss less Adam's of each optimizer, by seed, and the same against H(Φ)"
    yield from ("", f"![{seen}](results/{name}.png)", "")
    yield from (f"- {sentence}" for sentence in seeds_sentences(record))


def _rates(variant: Mapping[str, Any]) -> str:
    texts = []
    for rate in variant["sweep"]:
        losses = [outcome["train_loss"] for outcome in rate["outcomes"]]
        loss = "diverged" if None in losses else f"{statistics.fmean(losses):.3f}"
        text = f"{rate['lr']:g}: {loss}"
        is_best = rate["lr"] == variant["lr"] and None not in losses
        texts.append(f"**{text}**{' *' if variant['is_end'] else ''}" if is_best else text)
    return ", ".join(texts)


if __name__ == "__main__":
    main()
