"""Batches of labelled images, in an order that a resumed run can enter anywhere."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from data.images import load
from settings import RecipeError

Batch = tuple[Tensor, Tensor]  # images (batch, channels, height, width), labels (batch,)


class ImageList(Dataset[Batch]):
    """Images in the order of a run: number ``i`` is image ``place(i)``."""

    def __init__(
        self, pixels: Tensor, labels: Tensor, num_images: int, place: Callable[[int], int]
    ) -> None:
        self.pixels = pixels
        self.labels = labels
        self.num_images = num_images
        self.place = place

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> Batch:
        place = self.place(index)
        return self.pixels[place], self.labels[place]


class ImageData(LightningDataModule):
    """Batches of images, each channel with mean 0 and variance 1 over the training set.

    In each epoch the ``n`` training images come in another order, drawn from ``(seed, epoch)``:
    image ``i`` of a run has position ``i mod n`` in epoch ``i // n``. Step ``s`` uses the
    ``batch_size`` images from ``s * batch_size`` on, however they are shared out to ranks and
    micro-batches. So a resumed run needs to know only the step it starts at. Images are not
    augmented.

    Args:
        data: Where the images come from (see `data.images`).
        batch_size: Images an optimizer step, over all ranks and micro-batches.
        micro_batch: Images a batch.
        max_steps: Optimizer steps of the run.
        val_images: Images of a validation, at most.
        seed: Decides the order.
    """

    def __init__(
        self,
        data: str,
        *,
        batch_size: int,
        micro_batch: int,
        max_steps: int,
        val_images: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # the module logs all of them
        self.data = data
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.max_steps = max_steps
        self.val_images = val_images
        self.seed = seed

    @override
    def setup(self, stage: str) -> None:
        (pixels, labels), (val_pixels, val_labels) = load(self.data)
        if len(val_labels) < self._rank()[1]:  # the others would wait forever for a rank without
            raise RecipeError(
                f"data: expected a validation image for every device, got {len(val_labels)} in "
                f"{self.data!r}. Use fewer devices."
            )
        mean = pixels.mean(axis=(0, 2, 3), keepdims=True)
        deviation = pixels.std(axis=(0, 2, 3), keepdims=True)
        self.train_set = _tensors((pixels - mean) / deviation, labels)
        self.val_set = _tensors((val_pixels - mean) / deviation, val_labels)

    @override
    def train_dataloader(self) -> DataLoader[Batch]:
        rank, num_ranks = self._rank()
        num_images = len(self.train_set[1])
        assert self.trainer is not None
        # Lightning asks after it has read the checkpoint. The length is that of the whole run all
        # the same, because Lightning goes on counting batches where the checkpoint stopped.
        first = self.trainer.global_step * self.batch_size + rank

        @lru_cache(maxsize=2)
        def order(epoch: int) -> npt.NDArray[np.int64]:
            return np.random.default_rng((self.seed, epoch)).permutation(num_images)

        def place(index: int) -> int:
            epoch, position = divmod(first + index * num_ranks, num_images)
            return int(order(epoch)[position])

        length = self.max_steps * self.batch_size // num_ranks
        return DataLoader(ImageList(*self.train_set, length, place), batch_size=self.micro_batch)

    @override
    def val_dataloader(self) -> DataLoader[Batch]:
        rank, num_ranks = self._rank()
        last = len(self.val_set[1]) - 1
        # The same images each time, evenly spread.
        places = np.linspace(0, last, min(self.val_images, last + 1), dtype=np.int64)
        mine = places[rank::num_ranks]
        shown = ImageList(*self.val_set, len(mine), lambda index: int(mine[index]))
        return DataLoader(shown, batch_size=self.micro_batch)

    def _rank(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size


def _tensors(pixels: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> Batch:
    return torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(labels)
