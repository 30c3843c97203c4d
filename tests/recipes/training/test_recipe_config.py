import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file

import gpt2
from settings import RecipeError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layer": 0}, "n_layer: expected at least 1, got 0. Give a positive number"),
        ({"devices": -1}, "devices: expected at least 1, got -1"),
        ({"val_fraction": 0.6}, r"val_fraction: expected a share in \(0, 0.5\], got 0.6. Try 0.1"),
        ({"vocab_size": 256}, "vocab_size: expected at least 257"),
        ({"sequence_length": 1}, "sequence_length: expected at least 2"),
        ({"n_embd": 66}, "n_embd: expected a multiple of n_head=4, got 66"),
        ({"dropout": 1.0}, r"dropout: expected a chance in \[0, 1\)"),
        ({"batch_size": 24}, "batch_size: expected a multiple of 16 = micro_batch x devices"),
        (
            {"strategy": "fsdp2", "precision": "16-mixed"},
            "precision: expected 32-true or bf16-mixed beside --strategy fsdp2, got '16-mixed'",
        ),
        ({"devices": 3}, "batch_size: expected a multiple of 48"),
        ({"optimizer": "lion"}, "optimizer: expected one of adam, .*muon, got 'lion'. Choose"),
        ({"optimizer": None}, "optimizer: expected one of adam, .*, got None"),
        ({"rotation": "half"}, "rotation: expected one of global, .*, got 'half'"),
        (
            {"optimizer": "blockwise_adam", "partition": "layer"},
            "partition: expected one of coordinate, .*, got 'layer'",
        ),
        ({"precision": "64"}, "precision: expected one of 32-true, .*, got '64'"),
        (
            {"optimizer": "adam", "partition": "row"},
            "partition: expected none beside --optimizer adam, got 'row'. Choose --optimizer bl",
        ),
        (
            {"rotation": "global", "rotation_strength": 1.5},
            r"rotation_strength: expected in \[0, 1\], got 1.5",
        ),
        ({"rotation_strength": 0.5}, "rotation_strength: expected 1 without a rotation, got 0.5"),
        ({"optimizer": "sgd", "swap_at": -1}, "swap_at: expected at least 0 and less than"),
        ({"optimizer": "sgd", "swap_at": 500}, "swap_at: expected at least 0 .*=500, got 500"),
        ({"optimizer": "sgd", "swap_lr": 1.0}, "swap_lr: expected none without --swap_at, got 1"),
        ({"optimizer": "sgd", "swap_at": 5, "swap_lr": 0.0}, "swap_lr: expected more than 0"),
        ({"swap_at": 5}, "swap_at: expected 0 where all is plain AdamW, got 5. Choose an --opt"),
        ({"lr": 0.0}, "lr: expected more than 0"),
        ({"warmup_steps": 500}, "warmup_steps: expected at least 0 and less than max_steps=500"),
        ({"betas": (0.9, 1.0)}, r"betas: expected two in \[0, 1\)"),
        ({"weight_decay": -0.1}, "weight_decay: expected at least 0"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val: expected at least 0"),
        ({"num_probes": 3}, "num_probes: expected at least 4"),
        ({"seed": -1}, "seed: expected in"),
    ],
)
def test_wrong_choices_are_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        gpt2.Config(**changes)
