"""The list of built-in partitions, and those who read it."""

from typing import get_args

import pytest
import torch
from torch import nn

from lightning_linf import Partition
from lightning_linf.optim import BlockwiseAdam
from lightning_linf.panels.payload import vocabulary
from lightning_linf.partition_names import (
    DEFAULT,
    ENDS,
    FINE_TO_COARSE,
    MeasuredName,
    ModuleFreeName,
    PartitionName,
)


def test_every_name_has_a_meaning_in_the_same_order():
    assert tuple(FINE_TO_COARSE) == get_args(PartitionName)
    assert all(meaning.block and meaning.optimizer for meaning in FINE_TO_COARSE.values())


def test_ends_and_defaults_are_names_from_fine_to_coarse():
    names = get_args(PartitionName)
    assert ENDS == (names[0], names[-1])
    assert set(ENDS) < set(DEFAULT) < set(names)
    assert sorted(DEFAULT, key=names.index) == list(DEFAULT)


def test_order_is_from_many_blocks_to_few():
    module = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 16))
    by_name = {name: Partition.of(module, name).num_blocks for name in get_args(PartitionName)}
    assert sorted(by_name.values(), reverse=True) == list(by_name.values())
    assert (by_name["coordinate"], by_name["global"]) == (
        sum(p.numel() for p in module.parameters()),
        1,
    )


def test_names_that_need_no_module_are_those_an_optimizer_takes():
    for name in get_args(PartitionName):
        if name in get_args(ModuleFreeName):
            BlockwiseAdam([torch.ones(2, requires_grad=True)], partition=name)
        else:
            with pytest.raises(ValueError, match=r"Build Partition\.of"):
                BlockwiseAdam([torch.ones(2, requires_grad=True)], partition=name)


def test_panels_are_told_the_names_in_order():
    told = {each["name"]: each["optimizer"] for each in vocabulary()["partitions"]}
    assert list(told) == [*FINE_TO_COARSE, "spectral"] == list(get_args(MeasuredName))
    assert (told["coordinate"], told["global"], told["spectral"]) == ("Adam", "SGD", "Muon")
