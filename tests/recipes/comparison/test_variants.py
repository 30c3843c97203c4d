import dataclasses

import torch
from support.small_gpt2 import trained_plainly

from comparison import variants
from lightning_linf.optim import AdaSGD, BlockwiseAdam
from lightning_linf.reparam import Rotation


def test_variants_of_the_comparison_are_what_they_are_called(config):
    found = {}
    for variant in variants.ALL:
        trainer = trained_plainly(
            dataclasses.replace(
                config, weight_decay=0.0, max_steps=1, warmup_steps=0, **variant.choices
            )
        )
        (optimizer,) = trainer.optimizers
        inner = getattr(optimizer, "inner", optimizer)
        coordinates = getattr(optimizer, "reparameterization", None)
        partition = getattr(inner, "partition", None)
        partition = getattr(partition, "name", partition)
        assert variant.partition in (partition, "coordinate", "global")
        found[variant.optimizer, variant.geometry] = (type(inner), coordinates, partition)
    assert found == {
        ("adam", "coordinate"): (torch.optim.Adam, None, None),
        ("adam", "coordinate, rotated 0.25"): (
            torch.optim.Adam, Rotation("global", strength=0.25), None,
        ),
        ("adam", "coordinate, rotated 0.5"): (
            torch.optim.Adam, Rotation("global", strength=0.5), None,
        ),
        ("adam", "coordinate, rotated"): (torch.optim.Adam, Rotation("global"), None),
        ("adam", "coordinate, rotated tensor"): (torch.optim.Adam, Rotation("tensor"), None),
        ("blockwise_adam", "row"): (BlockwiseAdam, None, "row"),
        ("blockwise_adam", "head"): (BlockwiseAdam, None, "head"),
        ("blockwise_adam", "tensor"): (BlockwiseAdam, None, "tensor"),
        ("adasgd", "global"): (AdaSGD, None, "global"),
        ("sgd", "global, l2"): (torch.optim.SGD, None, None),
        ("sgd", "global, l2, rotated"): (torch.optim.SGD, Rotation("global"), None),
    }  # fmt: skip
    assert set(variants.FEW) <= set(variants.ALL)
