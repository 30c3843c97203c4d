"""Settings of a comparison beside those of its runs."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from settings import refuse_unless
from training.config import TrainingConfig

_CHOSEN_HERE: dict[str, Any] = {
    "optimizer": "adamw", "partition": None, "rotation": None, "rotation_strength": 1.0,
    "swap_at": 0, "weight_decay": 0.0, "resume": None,
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Settings of a comparison beside those of its runs."""

    variants: Literal["few", "control", "all"] = "few"
    """few: five optimizers. control adds rotated SGD at the rate of SGD; all adds weaker rotations
    and more kinds of blocks, and takes twice as long."""
    widen: int = 0
    """How many learning rates may be added to the three of an optimizer, each beyond the best one
    while that is the largest or the smallest. More find a better rate and take longer."""
    sweep_seeds: int = 1
    """Runs with each learning rate; the best rate has the least mean training loss. More cost more,
    and let less chance into the choice."""
    seeds: int = 0
    """Further runs of each optimizer at its best rate; at their ends the geometry is measured. From
    2 on they show how much is chance."""
    rounding: int = 0
    """How many of these runs are repeated with every initial weight moved to the next number that
    its type has. What that changes, rounding can change, and so another machine."""
    points: int = 1
    """Measurements of the geometry on each of these runs, evenly spread, the last at its end."""
    batch_sizes: tuple[int, ...] = ()
    """Batch sizes to compare at, one after the other; if none is given, that of the runs."""
    jobs: int = 1
    """Runs that go on at a time and share the cores, or the one GPU and its memory."""
    budget: float = math.inf
    """Minutes after which no further run is started; the same command goes on with the rest."""

    def check(self, config: TrainingConfig) -> None:
        """Refuse settings with which no comparison can be made."""
        lowest = {
            "widen": 0, "sweep_seeds": 1, "seeds": 0, "rounding": 0, "points": 1, "jobs": 1,
        }  # fmt: skip
        is_one_device = config.devices * config.num_nodes == 1
        refuse_unless(self, (
            *((name, getattr(self, name) >= least, f"at least {least}", "Give a larger number.")
              for name, least in lowest.items()),
            ("budget", self.budget > 0, "minutes above 0", "Leave it out for no limit."),
            ("jobs", is_one_device or (self.jobs == 1 and self.budget == math.inf),
             "1, and no budget, on several devices",
             "Leave --jobs and --budget out, or use one device."),
            ("rounding", self.rounding <= self.seeds, f"at most seeds={self.seeds}",
             "Lower it, or raise --seeds."),
            ("seeds", self.seeds == 0 or config.strategy != "fsdp2",
             "0 beside fsdp2, whose shards are not measured here", "Choose --strategy ddp."),
        ))  # fmt: skip
        remedy = "A comparison sets it itself: leave it out."
        refuse_unless(config, (
            (name, getattr(config, name) == value, f"{value!r} in a comparison", remedy)
            for name, value in _CHOSEN_HERE.items()
        ))  # fmt: skip
