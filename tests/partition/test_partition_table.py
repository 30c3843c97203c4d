"""What `describe` prints."""

import re

import torch
from support import networks
from support.raw_parameters import Experts, LowRank
from torch import nn

from lightning_linf import Partition


def test_table_marks_what_was_assumed_unless_it_is_stated(capsys):
    module = nn.Sequential(LowRank(), Experts())
    Partition.of(module, "row").describe()
    text = capsys.readouterr().out
    assert re.search(r"0\.down \* .* 1 .* 3 ", text)
    assert re.search(r"1\.weights \* .* 2 .* 12 ", text)
    assert re.search(r"0\.weight  .* 2 .* 3 ", text)
    assert "*: no module tells which dimension is the output" in text
    Partition.of(module, "row", output_dims={"down": 0, "weights": 0}).describe()
    Partition.of(module, "tensor").describe()
    assert "*" not in capsys.readouterr().out


def test_table_shows_every_tensor_and_the_memory(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    module, *_ = networks.mlp()
    Partition.of(module, "row").describe()
    text = capsys.readouterr().out
    assert re.search(r"0\.weight.*\(8, 5\).* 8 .* 5 ", text)
    assert "row: 37 blocks of 104 parameters" in text
    assert "0.000141 MiB, per parameter 0.000397 MiB" in text
    Partition.of(module, "module").describe()
    assert re.search(r"1\.bias.*\(8,\).*1, shared by 2 .* 16 ", capsys.readouterr().out)
    uneven = Partition.by_function(
        module, lambda name, p: (torch.arange(p.numel()) // 7).view_as(p)
    )
    uneven.describe()
    assert re.search(r"0\.weight.* 6 .*5-7 ", capsys.readouterr().out)


def test_table_shows_brackets_and_many_tensors(capsys):
    module = nn.ParameterDict({f"[red]{i}": torch.zeros(1) for i in range(70)})
    partition = Partition.of(module, "global")
    partition.describe()
    text = capsys.readouterr().out
    assert all(f"[red]{i} " in text for i in range(70))
    assert repr(partition) == "Partition('global', 1 block of 70 parameters)"
