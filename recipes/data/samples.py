"""The samples of a run, in an order that a resumed run can enter anywhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Self, TypeVar

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from settings import Settings

SampleT = TypeVar("SampleT")


class Samples(Dataset[SampleT]):
    """Samples 0 to ``num_samples - 1``, each of which ``make`` makes when it is asked for."""

    def __init__(self, num_samples: int, make: Callable[[int], SampleT]) -> None:
        self.num_samples = num_samples
        self.make = make

    def __len__(self) -> int:
        return self.num_samples

    @override
    def __getitem__(self, index: int) -> SampleT:
        return self.make(index)


@dataclass(kw_only=True, eq=False)
class RunData(LightningDataModule):
    """Batches of a run, shared out to ranks.

    Step ``s`` uses the ``batch_size`` samples from ``s * batch_size`` on, however they are shared
    out to ranks and micro-batches. So a resumed run needs to know only the step it starts at.
    (Lightning would start a plain DataLoader at its first batch again.)

    Give the Trainer ``use_distributed_sampler=False``: its sampler would share out the samples once
    more, and hold a list of every index of the run.

    Args:
        batch_size: Samples of an optimizer step, over all ranks and micro-batches.
        micro_batch: Samples of a batch.
        max_steps: Optimizer steps of the run.
    """

    batch_size: int
    micro_batch: int
    max_steps: int

    def __post_init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # the module logs all of them

    @classmethod
    def of(cls, config: Settings) -> Self:
        """Make the data from the settings that its arguments are named after."""
        return cls(**{field.name: getattr(config, field.name) for field in fields(cls)})

    def rank(self) -> tuple[int, int]:
        """Give the rank of this process and the number of ranks."""
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def training_batches(self, make: Callable[[int], SampleT]) -> DataLoader[SampleT]:
        """Batch this rank's samples of the run from the present step on.

        Args:
            make: Makes the sample with a number that counts all samples of the run, of all ranks.
        """
        assert self.trainer is not None
        rank, num_ranks = self.rank()
        # Lightning asks for batches after it has read the checkpoint. Their number is that of the
        # whole run all the same, because Lightning goes on counting where the checkpoint stopped.
        first = self.trainer.global_step * self.batch_size + rank
        num_samples = self.max_steps * self.batch_size // num_ranks
        samples = Samples(num_samples, lambda index: make(first + index * num_ranks))
        return DataLoader(samples, batch_size=self.micro_batch)

    def validation_batches(
        self, make: Callable[[int], SampleT], places: Sequence[int]
    ) -> DataLoader[SampleT]:
        """Batch this rank's share of the samples at ``places``, the same each time."""
        rank, num_ranks = self.rank()
        mine = places[rank::num_ranks]
        samples = Samples(len(mine), lambda index: make(mine[index]))
        return DataLoader(samples, batch_size=self.micro_batch)
