"""Compare optimizers on equal terms, each at the best of three learning rates.

All runs have the same data in the same order, initial weights, warm-up, schedule, clipping and
number of steps. None has weight decay, which means something else in each geometry. A finished run
is kept as `runs_dir/name/*.json`, so an interrupted comparison goes on where it stopped; other
choices, other text or other code make another run.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.box import HORIZONTALS
from rich.console import Console
from rich.table import Table

import lightning_linf
from corpus import cache_folder
from report import LossRecorder
from settings import RecipeError, refuse

if TYPE_CHECKING:
    from gpt2 import Config  # which imports this module

Prepare = Callable[..., tuple[Trainer, LightningModule, LightningDataModule]]

ABOUT = (
    "Train with Adam, Adam in rotated coordinates, blockwise Adam, AdaSGD and SGD, each at three "
    "learning rates, without probes, and show who is ahead. --lr is the middle one of Adam; those "
    "of the others are multiples of it that fit the preset tiny. Finished runs are not repeated."
)
NUM_STEPS = 250
_WARMUP_STEPS = 25  # at most
_LEVEL = 0.01  # nats; a closer result tells nothing from one seed
_CHOSEN_HERE: dict[str, Any] = {
    "optimizer": "adamw", "partition": None, "rotation": None, "rotation_strength": 1.0,
    "swap_at": 0, "weight_decay": 0.0, "resume": None,
}  # fmt: skip
_SAME_ANYWHERE = {"name", "runs_dir", "cache_dir"}  # no part of what a run is
_SOURCES = (Path(lightning_linf.__file__).parent, Path(__file__).parent)  # a part of it, like torch


@dataclass(frozen=True)
class Variant:
    """An optimizer, in the words of the table, and its learning rates as multiples of ``lr``."""

    optimizer: str
    geometry: str
    choices: Mapping[str, Any] = field(hash=False)
    factors: tuple[float, ...]


ADAM = Variant("adam", "coordinate", {"optimizer": "adam"}, (1 / 3, 1, 3))
ROTATED_ADAM = Variant(
    "adam", "coordinate, rotated", {"optimizer": "adam", "rotation": "global"}, (1 / 3, 1, 3)
)
VARIANTS = (
    ADAM,
    ROTATED_ADAM,
    Variant(
        "blockwise_adam", "tensor", {"optimizer": "blockwise_adam", "partition": "tensor"},
        (1 / 3, 1, 3),
    ),
    Variant("adasgd", "global", {"optimizer": "adasgd"}, (1, 3, 9)),
    Variant("sgd", "global, l2", {"optimizer": "sgd"}, (100, 300, 900)),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a run ended; its losses are None if it diverged."""

    lr: float
    train_loss: float | None
    val_loss: float | None
    seconds_per_step: float

    @property
    def order(self) -> float:
        """The training loss, with divergence last."""
        return math.inf if self.train_loss is None else self.train_loss


def shorter(presets: Mapping[str, Callable[[], "Config"]]) -> dict[str, Callable[[], "Config"]]:
    """Change presets to what a comparison takes by default."""

    def change(preset: Callable[[], "Config"]) -> "Config":
        config = preset()
        return replace(
            config,
            name=f"{config.name}-compare",
            batch_size=2 * config.batch_size,  # accumulated: less chance in who is ahead
            max_steps=NUM_STEPS,
            warmup_steps=min(config.warmup_steps, _WARMUP_STEPS),
            weight_decay=0.0,
        )

    return {name: lambda preset=preset: change(preset) for name, preset in presets.items()}  # type: ignore[misc]


def main(
    config: "Config", prepare: Prepare, variants: Sequence[Variant] = VARIANTS
) -> dict[Variant, list[Outcome]]:
    """Make the runs that are not there yet, and print what came out.

    Args:
        config: Choices that all runs share.
        prepare: Makes trainer, module and data of a config, callbacks and options of the Trainer.
        variants: What to compare.
    """
    for name, value in _CHOSEN_HERE.items():
        if getattr(config, name) != value:
            remedy = "A comparison sets it itself: leave it out."
            refuse(name, f"{value!r} in a comparison", getattr(config, name), remedy)
    text = cache_folder(config.data, config.cache_dir, config.vocab_size, config.val_fraction).name
    runs = [
        (variant, replace(config, **variant.choices, lr=lr, val_every=config.max_steps))
        for variant in variants
        for lr in (float(f"{config.lr * factor:.3g}") for factor in variant.factors)
    ]
    paths = [_path(run, text) for _, run in runs]
    # All before the first run: ranks (which must share runs_dir) agree on what is left.
    outcomes = [_read(path) for path in paths]
    for i, ((_, run), path) in enumerate(zip(runs, paths, strict=True)):
        outcome, note = outcomes[i], "kept from before"
        if outcome is None:
            outcome = outcomes[i] = _train(run, prepare)
            note = f"{outcome.seconds_per_step:.3f} s a step"
            _write(path, outcome, run, text)
        losses = f"train {_number(outcome.train_loss)}, val {_number(outcome.val_loss)}"
        _say(f"{i + 1}/{len(runs)} {_label(run)}: {losses}, {note}")
    results: dict[Variant, list[Outcome]] = {variant: [] for variant in variants}
    for (variant, _), outcome in zip(runs, outcomes, strict=True):
        assert outcome is not None
        results[variant].append(outcome)
    _say(comparison_table(results, config.max_steps))
    _say(comparison_sentence(results, config.max_steps))
    return results


def comparison_table(results: Mapping[Variant, Sequence[Outcome]], num_steps: int) -> Table:
    """Lay out one row per optimizer, at its learning rate with the least training loss."""
    table = Table(
        title=f"After {num_steps} steps, by optimizer",
        box=HORIZONTALS,
        padding=0,
        pad_edge=False,
        show_edge=False,  # 80 columns hold no more
    )
    for title, side in (
        ("optimizer", "left"), ("geometry", "left"), ("best lr", "right"),
        ("train\nloss", "right"), ("val\nloss", "right"), ("other lr:\ntrain loss", "right"),
        ("s /\nstep", "right"),
    ):  # fmt: skip
        table.add_column(title, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for variant, outcomes in results.items():
        best = _best(outcomes)
        rates = [outcome.lr for outcome in outcomes]
        is_end = best.train_loss is not None and best.lr in (min(rates), max(rates))
        table.add_row(
            variant.optimizer,
            variant.geometry,
            f"{best.lr:g}{'*' if is_end else ''}",
            _number(best.train_loss),
            _number(best.val_loss),
            "\n".join(f"{o.lr:g}: {_number(o.train_loss)}" for o in outcomes if o is not best),
            f"{best.seconds_per_step:.3f}",
        )
        if is_end:
            table.caption = "* an end of the rates tried: a better one may lie beyond (--lr)"
    return table


def comparison_sentence(results: Mapping[Variant, Sequence[Outcome]], num_steps: int) -> str:
    """Say whether Adam is ahead of itself in rotated coordinates."""
    if not {ADAM, ROTATED_ADAM} <= results.keys():
        return "Adam and rotated Adam were not both run."
    adam, rotated = (_best(results[variant]).train_loss for variant in (ADAM, ROTATED_ADAM))
    if adam is None or rotated is None:
        return "Adam and rotated Adam cannot be compared: all runs of one of them diverged."
    ahead = rotated - adam
    verdict = (
        f"ahead of rotated Adam by {ahead:.3f}"
        if ahead > _LEVEL
        else f"behind rotated Adam by {-ahead:.3f}"
        if ahead < -_LEVEL
        else f"level with rotated Adam, within {_LEVEL}"
    )
    return (
        f"Adam is {verdict} in training loss ({adam:.3f} against {rotated:.3f}, each at its best "
        f"of the rates tried, one seed) after {num_steps} steps."
    )


def _train(run: "Config", prepare: Prepare) -> Outcome:
    recorder = LossRecorder()
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.WARNING)  # else every run says which devices there are
    try:
        trainer, module, data = prepare(
            run, [recorder], logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.fit(module, data)
    finally:
        log.setLevel(level)
    val_loss = float(trainer.callback_metrics.get("val_loss", math.nan))
    is_finite = math.isfinite(recorder.train_loss) and math.isfinite(val_loss)
    assert trainer.global_step == run.max_steps or not is_finite
    return Outcome(
        lr=run.lr,
        train_loss=recorder.train_loss if is_finite else None,
        val_loss=val_loss if is_finite else None,
        seconds_per_step=recorder.seconds_per_step,
    )


def _path(run: "Config", text: str) -> Path:
    """Name the file of a run after all that its outcome depends on."""
    choices = {k: v for k, v in asdict(run).items() if k not in _SAME_ANYWHERE}
    content = json.dumps([text, choices, torch.__version__, _code()], sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    name = _label(run).replace(", lr ", "-lr").replace(" ", "-")
    return Path(run.runs_dir, run.name, f"{name}-{digest[:8]}.json")


@cache
def _code() -> str:
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Outcome | None:
    if not path.is_file():
        return None
    try:
        return Outcome(**json.loads(path.read_text())["outcome"])
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"compare: expected a finished run in {str(path)!r}, got {type(error).__name__}. "
            "Delete it to repeat the run."
        ) from error


@rank_zero_only
def _write(path: Path, outcome: Outcome, run: "Config", text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    content = {"outcome": asdict(outcome), "config": asdict(run), "text": text}
    part.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
    os.replace(part, path)  # a file is whole or not there


@rank_zero_only
def _say(what: str | Table) -> None:
    Console().print(what, highlight=False, markup=False, soft_wrap=isinstance(what, str))


def _best(outcomes: Sequence[Outcome]) -> Outcome:
    return min(outcomes, key=lambda outcome: outcome.order)


def _label(run: "Config") -> str:
    words = [run.optimizer, run.partition, run.rotation and f"rotated {run.rotation}"]
    return " ".join(word for word in words if word) + f", lr {run.lr:g}"


def _number(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.3f}"
