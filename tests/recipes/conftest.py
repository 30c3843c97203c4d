"""Small texts, and settings of a GPT-2 that trains on them in a second."""

import dataclasses
import random

import pytest


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """Twelve documents, each with a word of its own, as files."""
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 6))) for _ in range(60)]
    for number in range(12):
        text = " ".join([f"only{number:02d}", *draw.choices(words, k=120)])
        (folder / f"{number:02d}.txt").write_text(text)
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(texts, cache_dir, tmp_path):
    import gpt2  # not above: where there are no recipes, this file is read all the same

    return gpt2.Config(
        name="test",
        data=str(texts),
        val_fraction=0.2,
        vocab_size=300,
        sequence_length=16,
        n_layer=1,
        n_head=2,
        n_embd=8,
        batch_size=4,
        micro_batch=2,
        max_steps=2,
        lr=1e-2,
        warmup_steps=1,
        val_every=2,
        val_sequences=3,
        log_every=1,
        checkpoint_every=1,
        heterogeneity_every=1,
        smoothness_every=2,
        num_probes=4,
        accelerator="cpu",
        runs_dir=str(tmp_path / "runs"),
        cache_dir=str(cache_dir),
    )


@pytest.fixture
def comparison(config):
    return dataclasses.replace(config, weight_decay=0.0, max_steps=3)
