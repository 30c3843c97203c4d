"""The losses and learning rates that a training logs itself stand beside its geometry."""

import json
import re

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from support.short_run import IGNORED_WARNINGS, train

from lightning_linf import GeometryRecorder, record
from lightning_linf.html.page import make_page
from lightning_linf.record import Record
from lightning_linf.runs.load import load
from lightning_linf.runs.own import read_csv
from lightning_linf.runs.run import Run

pytestmark = [pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    folder = tmp_path_factory.mktemp("own")
    loggers = [
        CSVLogger(folder, name="", version="csv"),
        TensorBoardLogger(folder, name="", version="events", default_hp_metric=False),
    ]
    train(loggers, max_steps=4)
    return folder


def test_loss_is_that_of_the_logger_whichever_it_was(folder):
    by_name = {run.name: run for run in load([folder])}
    csv = dict(by_name["csv"].own["train_loss"])  # its geometry comes from geometry.jsonl
    events = dict(by_name["events"].own["train_loss"])
    assert list(csv) == list(events) == [0, 1, 2, 3]
    assert list(csv.values()) == pytest.approx(list(events.values()), rel=1e-6)
    assert not any(tag.startswith("geometry") for run in by_name.values() for tag in run.own)


def test_loss_is_read_of_event_files_beside_records(folder, tmp_path):
    (tmp_path / "run").mkdir()
    for source, pattern in (("csv", "geometry.jsonl"), ("events", "events.*")):
        for file in (folder / source).glob(pattern):
            (tmp_path / "run" / file.name).write_bytes(file.read_bytes())
    (run,) = load([tmp_path])
    assert [step for step, _ in run.own["train_loss"]] == [0, 1, 2, 3]
    assert run.notes == []


def test_page_holds_the_loss_with_what_was_trained(folder):
    runs = load([folder / "csv"])
    page = make_page(runs)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert data["scalars"]["csv"]["curves"]["train_loss"]["num_steps"] == 4
    assert "Net, trained by AdamW(lr=0.05, betas=(0.9, 0.999), weight_decay=0.01), measured" in page


def test_own_steps_that_begin_at_another_number_stand_beside_those_of_the_records(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    from support.geometry_tab import Plugin
    from torch.utils.tensorboard import SummaryWriter

    module = torch.nn.Linear(2, 1)
    module(torch.ones(1, 2)).sum().backward()
    with GeometryRecorder(tmp_path / "run", own_steps_from=1) as recorder:
        for step in range(3):
            recorder.observe(module, step=step)
    writer = SummaryWriter(str(tmp_path / "run"))
    for number in (1, 2, 3):
        writer.add_scalar("train/loss", 1 / number, number)
    writer.close()
    curves = Plugin(tmp_path).request("/scalars", run="run")[1]["curves"]
    assert len(curves) == 7
    assert all(curve["steps"] == [1, 2, 3] for curve in curves.values())
    for _ in ("records", "event files"):
        (run,) = load([tmp_path])
        assert [step for step, _ in run.own["train/loss"]] == [0, 1, 2]
        assert [step for step, _ in run.scalars["geometry/density"]] == [0, 1, 2]
        (tmp_path / "run" / "geometry.jsonl").unlink(missing_ok=True)


def test_damaged_lines_of_a_csv_are_passed_over(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_bytes(
        b"epoch,step,train_loss\n0,1,0.5\n0,,0.25\n0,x,1\n0,2,\n0,3,ab\n0,4\xff\n0,5,0.125,7\n"
    )
    run = Run("run")
    read_csv(run, path)
    points = list(run.own["train_loss"])
    assert points[0] == (1, 0.5)
    assert points[-1] == (5, 0.125)
    assert [step for step, _ in points] == [1, 3, 5]


def test_of_a_csv_what_is_beyond_all_bounds_is_passed_over_or_said(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,train_loss\n1,0.5\n1e300,1\n-1e300,1\ninf,1\n2,{'9' * 200_000}\n3,1\n")
    run = Run("run")
    read_csv(run, path)
    assert list(run.own["train_loss"]) == [(1, 0.5)]
    assert run.notes == [
        "run: metrics.csv cannot be read from line 5 on: field larger than field limit (131072)"
    ]


@pytest.mark.parametrize("number", [10**30, -(2**63)])
def test_a_table_whose_own_steps_begin_nowhere_is_left_out(tmp_path, number):
    scalars = {"geometry/density": 0.5}
    damaged = Record(0, "geometry/a", scalars, ["w"], {"density": [1.0]}, own_steps_from=number)
    record.append(tmp_path / record.FILE_NAME, damaged)
    (tmp_path / "metrics.csv").write_text("step,train_loss\n1,0.5\n")
    (run,) = load([tmp_path])
    assert list(run.scalars["geometry/density"]) == [(0, 0.5)]
    assert list(run.own["train_loss"]) == [(1, 0.5)]
    note = "geometry/a: 1 record left out that cannot be made a table of"
    assert run.notes == [f"{run.name}: {note}"]
