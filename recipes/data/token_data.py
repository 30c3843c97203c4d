"""Batches of token ids out of a corpus, in an order that a resumed run can enter anywhere."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

from data.corpus import build, cache_folder, token_dtype
from settings import RecipeError


class TokenBlocks(Dataset[Tensor]):
    """Sequences of consecutive tokens; number ``i`` starts at token ``place(i)``."""

    def __init__(
        self,
        tokens: npt.NDArray[np.unsignedinteger],
        sequence_length: int,
        num_blocks: int,
        place: Callable[[int], int],
    ) -> None:
        self.tokens = tokens
        self.sequence_length = sequence_length
        self.num_blocks = num_blocks
        self.place = place

    def __len__(self) -> int:
        return self.num_blocks

    def __getitem__(self, index: int) -> Tensor:
        start = self.place(index)
        block = self.tokens[start : start + self.sequence_length]
        return torch.from_numpy(block.astype(np.int64))  # (sequence,)


class TokenData(LightningDataModule):
    """Batches of token ids, shape (batch, sequence).

    The order of the training sequences depends on ``seed`` alone: sequence ``i`` of the run starts
    at a place drawn from ``(seed, i)``, and step ``s`` uses the ``batch_size`` sequences from
    ``s * batch_size`` on, however they are shared out to ranks and micro-batches. So a resumed run
    needs to know only the step it starts at. (Lightning would start a plain DataLoader at its first
    batch again.)

    The sequences are shared out to the ranks here. So give the Trainer
    ``use_distributed_sampler=False``: its sampler would hold a list of every index of the run.

    Args:
        data: Where the text comes from (see `data.corpus`).
        cache_dir: Where tokenizers and tokens are kept.
        vocab_size: Tokens of the tokenizer, at most.
        val_fraction: Share of the documents held out.
        sequence_length: Tokens a sequence.
        batch_size: Sequences an optimizer step, over all ranks and micro-batches.
        micro_batch: Sequences a batch.
        max_steps: Optimizer steps of the run.
        val_sequences: Sequences of a validation, at most.
        seed: Decides where the training sequences start.
    """

    def __init__(
        self,
        data: str,
        *,
        cache_dir: str,
        vocab_size: int,
        val_fraction: float,
        sequence_length: int,
        batch_size: int,
        micro_batch: int,
        max_steps: int,
        val_sequences: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)  # the module logs all of them
        self.data = data
        self.cache_dir = cache_dir
        self.vocab_size = vocab_size
        self.val_fraction = val_fraction
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.micro_batch = micro_batch
        self.max_steps = max_steps
        self.val_sequences = val_sequences
        self.seed = seed

    @cached_property
    def folder(self) -> Path:
        """Where the tokenizer and the tokens of this text are cached."""
        return cache_folder(self.data, self.cache_dir, self.vocab_size, self.val_fraction)

    @override
    def prepare_data(self) -> None:
        # Lightning calls this on one process of a node and lets the others wait.
        build(self.data, self.folder, self.vocab_size, self.val_fraction)

    @override
    def setup(self, stage: str) -> None:
        num_ranks = self._rank()[1]
        self.train_tokens = self._load("train", self.sequence_length)
        # Without a validation sequence for every rank the others would wait for it forever.
        self.val_tokens = self._load("validation", self.sequence_length * num_ranks)

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        rank, num_ranks = self._rank()
        num_places = len(self.train_tokens) - self.sequence_length + 1
        assert self.trainer is not None
        # Lightning asks after it has read the checkpoint. The length is that of the whole run all
        # the same, because Lightning goes on counting batches where the checkpoint stopped.
        first = self.trainer.global_step * self.batch_size + rank

        def place(index: int) -> int:
            sequence = first + index * num_ranks
            return int(np.random.default_rng((self.seed, sequence)).integers(num_places))

        num_blocks = self.max_steps * self.batch_size // num_ranks
        blocks = TokenBlocks(self.train_tokens, self.sequence_length, num_blocks, place)
        return DataLoader(blocks, batch_size=self.micro_batch)

    @override
    def val_dataloader(self) -> DataLoader[Tensor]:
        rank, num_ranks = self._rank()
        num_blocks = min(self.val_sequences, len(self.val_tokens) // self.sequence_length)
        # The same sequences each time, evenly spread over the held-out text.
        last = len(self.val_tokens) - self.sequence_length
        places = np.linspace(0, last, max(num_blocks, num_ranks), dtype=np.int64)[rank::num_ranks]
        blocks = TokenBlocks(
            self.val_tokens, self.sequence_length, len(places), lambda index: int(places[index])
        )
        return DataLoader(blocks, batch_size=self.micro_batch)

    def _rank(self) -> tuple[int, int]:
        assert self.trainer is not None
        return self.trainer.global_rank, self.trainer.world_size

    def _load(self, split: str, needed: int) -> npt.NDArray[np.unsignedinteger]:
        path = self.folder / f"{split}.bin"
        dtype = np.dtype(token_dtype(self.vocab_size))
        num_tokens = path.stat().st_size // dtype.itemsize
        if num_tokens < needed:
            raise RecipeError(
                f"data: expected at least {needed} {split} tokens for --sequence_length "
                f"{self.sequence_length}, got {num_tokens} in {self.data!r}. Give more text, or a "
                "shorter sequence."
            )
        return np.memmap(path, dtype=dtype, mode="r")
