"""The recipe on several devices and on several machines prints the table of one process."""

import dataclasses
import io
import os
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from support.agents import exit_codes, start_agent
from support.ranks import assert_close, environment, in_processes
from support.recipes import RECIPES

import gpt2
from lightning_linf.record import Reader

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning"),  # Lightning's own
]


@pytest.fixture
def alone(config):
    """One process that takes the batch of all others at once."""
    return dataclasses.replace(
        config, micro_batch=4, max_steps=4, lr=1e-3, val_sequences=4, runs_dir="runs"
    )


def printed(config):
    out = io.StringIO()
    with redirect_stdout(out):
        gpt2.main(config)
    return out.getvalue()


def table(text):
    """The lines of the geometry, without its captions."""
    lines = [line for line in text.splitlines() if line.strip().split(" ")[0].isdigit()]
    assert len(lines) == 2  # steps 1 and 3
    return lines


def sentence(text):
    start = text.index("Trained with")
    return " ".join(text[start : text.index("Checkpoint:")].split())


def recorded(path):
    with open(path, "rb") as file:
        reader = Reader(file)
        found = [(record.tag, record.step) for _, record in reader]
        assert reader.notes() == []
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "devices"), [("ddp", 2), ("fsdp2", 4)])
def test_several_devices_print_the_table_of_one(alone, tmp_path, monkeypatch, strategy, devices):
    def on_rank(rank):
        os.environ.update(environment(rank, devices))
        return printed(
            dataclasses.replace(
                alone, devices=devices, micro_batch=4 // devices, strategy=strategy, name="several"
            )
        )

    monkeypatch.chdir(tmp_path)
    gpt2.prepare(alone, [])[2].prepare_data()  # else all would build it
    first, *others = in_processes(on_rank, tmp_path, devices)
    assert others == [""] * (devices - 1)  # rank 0 alone speaks
    expected = printed(alone)
    assert table(first) == table(expected)
    assert sentence(first) == sentence(expected)
    run = tmp_path / "runs" / "several" / "version_0"
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    kept = recorded(run / "geometry.jsonl")
    assert kept == recorded(tmp_path / "runs" / "test" / "version_0" / "geometry.jsonl")


def start_node(store, folder, config):
    """Start one of two machines, whose files the other does not see."""
    changes = {"num_nodes": 2, "micro_batch": 2, "cache_dir": "cache"}
    fields = {**dataclasses.asdict(config), **changes}
    flags = [
        f"--{name}={list(value) if isinstance(value, tuple) else value}"
        for name, value in fields.items()
        if value is not None
    ]
    return start_agent(
        folder, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{store.port}", "--rdzv-conf=is_host=0",
        "--local-addr=127.0.0.1", str(RECIPES / "gpt2.py"), *flags,
    )  # fmt: skip


@pytest.fixture
def store():
    """Where the machines meet: it listens before they are told of its port."""
    return torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.mark.slow
def test_two_nodes_print_the_table_of_one_and_the_first_writes_the_files(
    alone, tmp_path, monkeypatch, store
):
    config = dataclasses.replace(alone, strategy="fsdp2")
    folders = [tmp_path / f"node {node}" for node in range(2)]
    nodes = [start_node(store, folder, config) for folder in folders]
    codes = exit_codes(nodes, limit_seconds=600)  # a busy machine takes minutes to import all
    assert codes == [0, 0], [(folder / "err").read_text() for folder in folders]
    folders.sort(key=lambda folder: not (folder / "runs").exists())  # by rank, which torchrun gives
    first, second = ((folder / "out").read_text() for folder in folders)
    monkeypatch.chdir(tmp_path)
    expected = printed(alone)
    assert table(first) == table(expected)
    assert sentence(first) == sentence(expected)
    assert "Geometry of the loss" not in second

    run = Path("runs", "test", "version_0")
    assert recorded(folders[0] / run / "geometry.jsonl") == recorded(run / "geometry.jsonl")
    written = sorted(path.name for path in (folders[0] / run / "checkpoints").iterdir())
    assert written == ["best.ckpt", "last.ckpt"]
    # The other machine has the tokens, which it needs, and nothing of the run.
    assert {path.name for path in folders[1].iterdir()} == {"cache", "out", "err"}
    ours, theirs = (
        torch.load(folder / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (folders[0], Path())
    )
    assert_close(ours, theirs, rtol=1e-3, atol=1e-5)  # float32, and Adam enlarges it
