"""Run the three recipes at their small sizes and write docs/results.md from their results.

    python recipes/paper.py            # as `make paper`: half an hour on two CPU cores
    python recipes/paper.py --long     # also more rotations and more blocks: half an hour more
    python recipes/paper.py --page     # only write the page again, from docs/results/*.json

Where torch finds a CUDA device, the preset `small` of the GPT-2 is compared on it, too. Finished
runs are kept under runs/paper, so an interrupted call goes on where it stopped.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from comparison.figures import draw_comparison, draw_quadratic
from comparison.sentences import seeds_sentences
from comparison.tables import seeds_rows
from quadratic import METHODS
from quadratic import sentences as quadratic_sentences

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results"
PAGE = ROOT / "docs" / "results.md"
RUNS = "runs/paper"
_CPU = f"--jobs 2 --accelerator cpu --runs-dir {RUNS}"


@dataclass(frozen=True)
class Study:
    """A command, and the results that it leaves.

    Args:
        title: Heading on the page.
        about: What is studied, in a sentence or two.
        command: The recipe and its flags.
        results: The names of its results on the page, each with their folder under ``RUNS``.
            Studies with the same folder share the runs that both make.
        is_long: Whether it runs only with ``--long``.
    """

    title: str
    about: str
    command: str
    results: Mapping[str, str]
    is_long: bool = False


QUADRATIC = Study(
    "A rotated quadratic",
    "x^T H x / 2 with ten eigenvalues 1 and then 1/k^2, in coordinates turned by exp(t M); every "
    "optimizer at the best constant learning rate of its grid.",
    f"quadratic.py --runs-dir {RUNS}",
    {"quadratic": "quadratic"},
)
_GPT2 = f"--micro-batch 8 --probe-batches 2 --widen 1 --seeds 3 {_CPU}"
GPT2 = Study(
    "GPT-2",
    "The preset tiny: 370k parameters, on the sources of Python's standard library.",
    f"gpt2.py compare --name gpt2 --variants control {_GPT2}",
    {"gpt2": "gpt2"},
)
GPT2_ALL = Study(
    "GPT-2, weaker rotations and more blocks",
    "The same runs, and those with weaker rotations, one a tensor, rows and heads.",
    f"gpt2.py compare --name gpt2 --variants all {_GPT2}",
    {"gpt2-all": "gpt2"},
    is_long=True,
)
_RESNET = f"--max-steps 100 --num-probes 8 --widen 1 --seeds 3 {_CPU}"
RESNET = Study(
    "ResNet-18",
    "A thin ResNet-18 on scikit-learn's handwritten digits, at two batch sizes. Such trainings "
    "enlarge rounding: `tests/recipes/test_recipe_resnet.py` holds SGD and rotated SGD to be equal "
    "to rounding for the first steps, no longer.",
    f"resnet.py compare --name resnet --batch-sizes [16,64] --variants control {_RESNET}",
    {"resnet-batch16": "resnet-batch16", "resnet-batch64": "resnet-batch64"},
)
RESNET_ALL = Study(
    "ResNet-18, weaker rotations and more blocks",
    "The same runs at one batch size, and those with weaker rotations, one a tensor, and rows.",
    f"resnet.py compare --name resnet --batch-sizes [16] --variants all {_RESNET}",
    {"resnet-all": "resnet-batch16"},
    is_long=True,
)
GPT2_CUDA = Study(
    "GPT-2, preset small, on a GPU",
    "14M parameters.",
    "gpt2.py compare --preset small --name gpt2-small --variants all --widen 1 --seeds 2 "
    f"--accelerator gpu --runs-dir {RUNS}",
    {"gpt2-small": "gpt2-small"},
)
_PREFACE = """\
# Results

Written by `make paper` from the logs in `docs/results`; no result here is typed. The claims are
those of [Xie, Mohamadi & Li](https://arxiv.org/abs/2410.08198): Adam loses by a rotation of the
coordinates, SGD does not, and what an optimizer loses follows the smoothness H(Φ) of its own
geometry. Their figures, of far larger trainings, are not repeated here. These runs are small and
short and their seeds few, so they are reported as they came out, for the claims or against them.

A training loss is the mean of the last 20 steps. H(Φ) is that of the optimizer's own partition Φ
in its own coordinates: the (1,1)-norm for Adam, d λ_max for AdaSGD and SGD, an upper bound of it
for blocks. At the end of each run it also tells where the optimizer went, so all of them are
measured at the end of Adam's runs, too."""
STUDIES = (QUADRATIC, GPT2, RESNET, GPT2_ALL, RESNET_ALL, GPT2_CUDA)
_NOT_RUN = "Not run: `make paper` found no CUDA device."
_NOT_LONG = "Not run: only `make paper ARGS=--long` does."


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--page", action="store_true", help="only write the page again")
    parser.add_argument("--long", action="store_true", help="also more rotations and more blocks")
    parser.add_argument("--only", help="a recipe, such as resnet.py")
    choices = parser.parse_args()
    for study in () if choices.page else STUDIES:
        is_chosen = choices.only in (None, study.command.partition(" ")[0])
        is_possible = study is not GPT2_CUDA or torch.cuda.is_available()
        if is_chosen and is_possible and (choices.long or not study.is_long):
            make(study)
    draw()
    PAGE.write_text("\n".join(page()) + "\n", encoding="utf-8")
    print(f"Written: {PAGE}")


def make(study: Study) -> None:
    """Run a command, and keep its results in `docs/results`."""
    recipe, *flags = shlex.split(study.command)
    started = time.perf_counter()
    subprocess.run([sys.executable, f"recipes/{recipe}", *flags], cwd=ROOT, check=True)
    seconds = time.perf_counter() - started
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, folder in study.results.items():
        log = "quadratic.json" if study is QUADRATIC else "comparison.json"
        record = json.loads((ROOT / RUNS / folder / log).read_text())
        old = _record(name) or {}
        kept_all = {**old, "minutes": 0} == {**record, "minutes": 0}
        # The time of the whole command, also where it has several results.
        record["minutes"] = old["minutes"] if kept_all else seconds / 60
        (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def draw() -> None:
    """Draw the figures of the results that are there."""
    for study in STUDIES:
        for name in study.results:
            if (record := _record(name)) is not None:
                path = FOLDER / f"{name}.png"
                if study is QUADRATIC:
                    draw_quadratic(record["rows"], path)
                else:
                    draw_comparison(record, path)


def page() -> Iterator[str]:
    """Write the page, line by line."""
    yield _PREFACE
    for study in STUDIES:
        yield from ("", f"## {study.title}", "", study.about, "")
        yield f"    python recipes/{study.command}"
        yield ""
        records = [_record(name) for name in study.results]
        if None in records:
            yield _NOT_RUN if study is GPT2_CUDA else _NOT_LONG if study.is_long else "Not run."
            continue
        yield _made_with(records[0])
        for name, record in zip(study.results, records, strict=True):
            assert record is not None
            yield from _quadratic(record) if study is QUADRATIC else _comparison(name, record)


def _record(name: str) -> Any:
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _made_with(record: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"With {versions}. The command took {record['minutes']:.1f} minutes, runs kept from an "
        "earlier call not counted."
    )


def _quadratic(record: Mapping[str, Any]) -> Iterator[str]:
    rows = record["rows"]
    yield from ("", "![](results/quadratic.png)", "")
    yield from _markdown(
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
    return f"{best['loss']:.3g} (lr {best['lr']:.3g}{', an end' if best['is_end'] else ''})"


def _comparison(name: str, record: Mapping[str, Any]) -> Iterator[str]:
    config, options = record["config"], record["options"]
    yield from ("", f"### Batches of {config['batch_size']}, {config['max_steps']} steps", "")
    first, num_swept = config["seed"], options["sweep_seeds"]
    seeds = (
        f"seed {first}" if num_swept == 1 else f"mean of seeds {first} to {first + num_swept - 1}"
    )
    yield f"Training losses by learning rate, {seeds}; the best in bold, with a star where it is an"
    yield "end of those tried. Rotated SGD takes the rate of SGD."
    yield ""
    yield from _markdown(["optimizer", "geometry", "learning rate: training loss"], [
        [variant["optimizer"], variant["geometry"], _rates(variant)]
        for variant in record["variants"]
    ])  # fmt: skip
    yield ""
    yield f"At the best of them with other seeds ({options['seeds']}; ± standard deviation),"
    yield "and the geometry at the end, mean over seeds, in the coordinates that the optimizer saw:"
    yield ""
    titles = ["optimizer", "geometry", "training loss", "validation loss", "(1,1)-norm / d",
              "λ_max", "H(Φ) / d"]  # fmt: skip
    yield from _markdown(titles, seeds_rows(record))
    yield from ("", f"![](results/{name}.png)", "")
    yield from (f"- {sentence}" for sentence in seeds_sentences(record))
    yield f"- {_cost(record)}"


def _cost(record: Mapping[str, Any]) -> str:
    """Add up the time of all steps; the runs may have been made by several calls."""
    finished = [
        run
        for variant in record["variants"]
        for runs in (*(rate["outcomes"] for rate in variant["sweep"]), variant["seeds"])
        for run in runs
        if run["train_loss"] is not None
    ]
    steps = sum(run["seconds_per_step"] for run in finished) * record["config"]["max_steps"]
    return f"{len(finished)} runs that did not diverge: {steps / 60:.1f} minutes of steps in all."


def _rates(variant: Mapping[str, Any]) -> str:
    texts = []
    for rate in variant["sweep"]:
        losses = [outcome["train_loss"] for outcome in rate["outcomes"]]
        loss = "diverged" if None in losses else f"{statistics.fmean(losses):.3f}"
        text = f"{rate['lr']:g}: {loss}"
        is_best = rate["lr"] == variant["lr"] and None not in losses
        texts.append(f"**{text}**{' *' if variant['is_end'] else ''}" if is_best else text)
    return ", ".join(texts)


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    for row in (titles, ["---"] * len(titles), *rows):
        yield f"| {' | '.join(row)} |"


if __name__ == "__main__":
    main()
