"""Batches of token ids out of a corpus."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from typing_extensions import override

from data.corpus import build, cache_folder, held_out_fraction, token_dtype
from data.samples import RunData
from settings import RecipeError


@dataclass(kw_only=True, eq=False)
class TokenData(RunData):
    """Batches of token ids, shape (batch, sequence).

    The order of the training sequences depends on ``seed`` alone: sequence ``i`` of the run starts
    at a place drawn from ``(seed, i)``.

    Args:
        data: Where the text comes from (see `data.corpus`).
        cache_dir: Where tokenizers and tokens are kept.
        vocab_size: Tokens of the tokenizer, at most.
        val_fraction: Share of the documents held out; more where that is too little text.
        sequence_length: Tokens of a sequence.
        batch_size: Sequences of an optimizer step, over all ranks and micro-batches.
        micro_batch: Sequences of a batch.
        max_steps: Optimizer steps of the run.
        val_sequences: Sequences of a validation, at most.
        seed: Decides where the training sequences start.
    """

    data: str
    cache_dir: str
    vocab_size: int
    val_fraction: float
    sequence_length: int
    val_sequences: int
    seed: int

    @cached_property
    def held_out(self) -> float:
        """Share of the documents that is held out in the end."""
        return held_out_fraction(self.data, self.val_fraction, self.sequence_length)

    @cached_property
    def folder(self) -> Path:
        """Where the tokenizer and the tokens of this text are cached."""
        return cache_folder(self.data, self.cache_dir, self.vocab_size, self.held_out)

    @override
    def prepare_data(self) -> None:
        # Lightning calls this on one process of a node and lets the others wait.
        if self.held_out != self.val_fraction:
            print(
                f"val_fraction: {self.val_fraction:g} of {self.data} is too little text to validate"
                f" on, so {self.held_out:.2g} of it is held out",
                flush=True,
            )
        build(self.data, self.folder, self.vocab_size, self.held_out)

    @override
    def setup(self, stage: str) -> None:
        num_ranks = self.rank()[1]
        self.train_tokens = self._load("train", self.sequence_length)
        # Without a validation sequence for every rank the others would wait for it forever.
        self.val_tokens = self._load("validation", self.sequence_length * num_ranks)

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        num_places = len(self.train_tokens) - self.sequence_length + 1

        def make(number: int) -> Tensor:
            place = np.random.default_rng((self.seed, number)).integers(num_places)
            return self._sequence(self.train_tokens, int(place))

        return self.training_batches(make)

    @override
    def val_dataloader(self) -> DataLoader[Tensor]:
        num_sequences = min(self.val_sequences, len(self.val_tokens) // self.sequence_length)
        # Evenly spread over the held-out text, and at least one for every rank.
        last = len(self.val_tokens) - self.sequence_length
        places = np.linspace(0, last, max(num_sequences, self.rank()[1]), dtype=np.int64)
        return self.validation_batches(
            lambda place: self._sequence(self.val_tokens, place), places.tolist()
        )

    def _sequence(self, tokens: npt.NDArray[np.unsignedinteger], start: int) -> Tensor:
        block = tokens[start : start + self.sequence_length]
        return torch.from_numpy(block.astype(np.int64))  # (sequence,)

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
