"""Batches of labelled images."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from data.images import load
from data.samples import RunData
from settings import RecipeError

Batch = tuple[Tensor, Tensor]  # images (batch, channels, height, width), labels (batch,)


@dataclass(kw_only=True, eq=False)
class ImageData(RunData):
    """Batches of images, each channel with mean 0 and variance 1 over the training set.

    In each epoch the ``n`` training images come in another order, drawn from ``(seed, epoch)``:
    image ``i`` of a run has position ``i mod n`` in epoch ``i // n``. Images are not augmented.

    Args:
        data: Where the images come from (see `data.images`).
        batch_size: Images of an optimizer step, over all ranks and micro-batches.
        micro_batch: Images of a batch.
        max_steps: Optimizer steps of the run.
        val_images: Images of a validation, at most.
        seed: Decides the order.
    """

    data: str
    val_images: int
    seed: int

    @override
    def setup(self, stage: str) -> None:
        (pixels, labels), (val_pixels, val_labels) = load(self.data)
        if len(val_labels) < self.rank()[1]:  # the others would wait forever for a rank without
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
        pixels, labels = self.train_set

        @lru_cache(maxsize=2)
        def order(epoch: int) -> npt.NDArray[np.int64]:
            return np.random.default_rng((self.seed, epoch)).permutation(len(labels))

        def make(number: int) -> Batch:
            epoch, position = divmod(number, len(labels))
            place = int(order(epoch)[position])
            return pixels[place], labels[place]

        return self.training_batches(make)

    @override
    def val_dataloader(self) -> DataLoader[Batch]:
        pixels, labels = self.val_set
        num_images = min(self.val_images, len(labels))
        places = np.linspace(0, len(labels) - 1, num_images, dtype=np.int64)  # evenly spread
        return self.validation_batches(
            lambda place: (pixels[place], labels[place]), places.tolist()
        )


def _tensors(pixels: npt.NDArray[np.floating], labels: npt.NDArray[np.int64]) -> Batch:
    return torch.from_numpy(pixels.astype(np.float32)), torch.from_numpy(labels)
