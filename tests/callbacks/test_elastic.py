"""A worker dies and torchrun starts all of them again."""

import os
from pathlib import Path

import pytest
import torch
from support.agents import exit_codes, start_agent
from support.bit_identity import assert_same
from support.elastic_training import main
from support.ranks import environment
from support.ranks_apart import run_apart

from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor
from lightning_linf.record import Reader

SCRIPT = Path(__file__).parents[1] / "support" / "elastic_training.py"


def torchrun(folder, *arguments):
    agent = start_agent(
        folder, "--standalone", "--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1",
        str(SCRIPT), str(folder), *arguments,
        # Else a restart may read from the shared store where the ranks before it listened.
        TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1",
    )  # fmt: skip
    codes = exit_codes([agent], limit_seconds=600)  # a busy machine takes minutes to import all
    said = (folder / "err").read_text()
    assert codes == [0], said
    return torch.load(folder / "result.pt"), said


def records(path):
    with open(path, "rb") as file:
        reader = Reader(file)
        found = [(record.tag, record.step, record.restart) for _, record in reader]
        assert reader.notes() == []
    return found


@pytest.mark.slow
def test_a_restarted_training_is_the_uninterrupted_one_and_has_each_record_once(tmp_path):
    ours, said = torchrun(tmp_path / "mortal", "5")
    immortal = tmp_path / "immortal"

    def uninterrupted(rank):
        os.environ.update(environment(rank))
        main(immortal, -1)

    run_apart(uninterrupted, immortal, 2)
    theirs = torch.load(immortal / "result.pt")
    assert (tmp_path / "mortal" / "died").exists()
    assert not (immortal / "died").exists()
    assert_same(ours, theirs)
    assert [step for step, _ in ours["smoothness"]] == [1, 3, 5, 7]

    density, smoothness = (
        monitor.record_tag for monitor in (GradientHeterogeneityMonitor, LinfSmoothnessMonitor)
    )
    # The last checkpoint was that of step 3: steps 3 and 4 were made twice.
    kept = records(tmp_path / "mortal" / "geometry.jsonl")
    assert [(s, n) for tag, s, n in kept if tag == density] == [(s, int(s > 2)) for s in range(8)]
    assert [(s, n) for tag, s, n in kept if tag == smoothness] == [(1, 0), (3, 1), (5, 1), (7, 1)]
    moved = records(tmp_path / "mortal" / "geometry.1.jsonl")
    assert moved == [(density, 3, 0), (smoothness, 3, 0), (density, 4, 0)]
    assert "geometry.jsonl: restart 1 goes on at step 3." in said
    alike = records(immortal / "geometry.jsonl")
    assert [row[:2] for row in alike] == [row[:2] for row in kept]
