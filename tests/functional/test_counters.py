"""Words from counters: the hash in Python's integers, and that every bit is a fair coin."""

import pytest
import torch

from lightning_linf.functional.counters import hashed_words
from lightning_linf.functional.random import derive_seed

CPU = torch.device("cpu")


def reference(counter, key):
    word = (counter + key) % 2**32
    word = (word ^ word >> 16) * 0x21F0AAAD % 2**32 ^ (key >> 31)
    word = (word ^ word >> 15) * 0x735A2D97 % 2**32
    word = (word ^ word >> 15) * 0x846CA68B % 2**32
    word ^= word >> 16
    return word - 2**32 if word >= 2**31 else word


@pytest.mark.parametrize("first", [0, 5, 2**31 - 50, 2**32 - 100])
@pytest.mark.parametrize("key", [0, 1, 2**63 - 1, derive_seed("key")])
def test_words_are_those_of_exact_integers(first, key):
    words = hashed_words(first, 100, key=key, device=CPU)
    assert words.dtype == torch.int32
    assert words.tolist() == [reference(first + i, key) for i in range(100)]


def test_no_word_comes_twice():
    words = hashed_words(0, 1 << 20, key=derive_seed("key"), device=CPU)
    assert len(words.unique()) == len(words)


@pytest.mark.parametrize("shift", [0, 8, 16, 20])
def test_words_and_pairs_of_words_are_spread_evenly(shift):
    words = hashed_words(0, 1 << 20, key=derive_seed("key", shift), device=CPU).long()
    for lag in (1, 256, 1 << 16, 1 << 18):
        few = words >> shift & 63
        counts = torch.bincount(few[lag:] * 64 + few[:-lag], minlength=4096).double()
        expected = counts.sum() / 4096
        chi_squared = ((counts - expected).square() / expected).sum()
        assert abs(float(chi_squared) - 4095) < 5 * (2 * 4095) ** 0.5
