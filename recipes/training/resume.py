"""The checkpoint to go on from."""

import os
import pickle
from dataclasses import fields
from pathlib import Path

import torch

from settings import RecipeError, refuse
from training.config import TrainingConfig

MAY_CHANGE_ON_RESUME = {
    "name", "val_every", "log_every", "checkpoint_every", "heterogeneity_every",
    "smoothness_every", "num_probes", "probe_batches", "accelerator", "strategy", "precision",
    "runs_dir", "resume",
}  # fmt: skip


def find_checkpoint(config: TrainingConfig, may_change: set[str]) -> str | None:
    """Find the checkpoint that ``config.resume`` means, and refuse one of a different run.

    Lightning would restore, say, the old learning rate and drop the new one without a word.

    Args:
        config: The settings of this run.
        may_change: Fields that may differ from those of the run that wrote the checkpoint.
    """
    if config.resume is None:
        return None
    path = Path(config.resume).expanduser()
    if config.resume == "last":
        found = Path(config.runs_dir, config.name).glob("version_*/checkpoints/last.ckpt")
        path = max(found, key=os.path.getmtime, default=path)
    if not path.is_file():
        refuse(
            "resume",
            f"a checkpoint, or 'last' with one under {Path(config.runs_dir, config.name)}",
            config.resume,
            "Check --resume, --runs_dir and --name, or leave --resume out to start afresh."
            + (" Every machine needs the file." if config.num_nodes > 1 else ""),
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        before = type(config)(**state["hyper_parameters"]["config"])
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise RecipeError(
            f"resume: expected a checkpoint of this recipe, got {str(path)!r} "
            f"({type(error).__name__}). Give a last.ckpt or best.ckpt that it wrote."
        ) from error
    for field in fields(config):
        old, new = getattr(before, field.name), getattr(config, field.name)
        if old != new and field.name not in may_change:
            refuse(field.name, f"{old!r} as in the run of {path}", new, "Repeat that run's flags.")
    if state["global_step"] >= config.max_steps:
        refuse(
            "resume",
            f"a run that has some of its {config.max_steps} steps left",
            str(path),
            "That run is complete; leave --resume out to train anew.",
        )
    return str(path)
