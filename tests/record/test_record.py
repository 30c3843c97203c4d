"""The records of measurements: their file, and how a training goes on with it."""

import json
import logging
import math
import re
from functools import partial
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger
from support.records import read
from support.short_run import IGNORED_WARNINGS, Net, data, train

from lightning_linf import quantities, record
from lightning_linf.callbacks import GradientHeterogeneityMonitor, _recording
from lightning_linf.record import LogHistogram, Record, SchemaError

pytestmark = [pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS]


def example(step=3, **changes):
    fields = {
        "step": step,
        "tag": "geometry/heterogeneity_per_tensor",
        "scalars": {"geometry/density": 0.1 + 0.2, "geometry/gini": math.nan},
        "tensors": ["a", "ü\u2028"],
        "columns": {"density": [0.5, math.inf], "log10_quantiles": [[-1.0, 0.0], [-2.0, 1.5]]},
        "whole": {"density": 0.25, "log10_quantiles": [-2.0, 1.5]},
        "histogram": LogHistogram([-2.0, 0.0, 1.5], [1, 3]),
        "report": {"loss": 0.1 + 0.2, "secant": "NaN"},
        "restart": 2,
        "wall_time": 1798761600.125,
    }
    return Record(**{**fields, **changes})


def test_a_record_reads_back_as_it_was_written():
    line = example().to_line()
    assert line.count("\n") == 1
    assert line.endswith("\n")
    back = Record.from_line(line)
    assert math.isnan(back.scalars["geometry/gini"])
    assert back.scalars["geometry/density"] == 0.1 + 0.2  # scalars are exact
    same = {"geometry/gini": 0.0}
    assert Record(**{**vars(back), "scalars": same}) == example(scalars=same)


def test_a_record_says_no_restart_where_there_was_none():
    line = example(restart=0).to_line()
    assert "restart" not in line
    assert Record.from_line(line).restart == 0


def test_records_of_the_version_before_are_read_and_have_no_report():
    line = example(report=None).to_line().replace('"schema": 2', '"schema": 1')
    assert Record.from_line(line).report is None
    assert Record.from_line(line).scalars["geometry/density"] == 0.1 + 0.2


def test_a_report_of_whatever_kind_costs_no_other_part_of_a_record():
    for report in ([], "x", {"loss": {}}):
        line = (
            example()
            .to_line()
            .replace('{"loss": 0.30000000000000004, "secant": "NaN"}', json.dumps(report))
        )
        assert Record.from_line(line).report == report


def test_lines_are_strict_json_for_readers_of_any_language():
    def fail(constant):
        raise AssertionError(constant)

    content = json.loads(example().to_line(), parse_constant=fail)
    assert content["scalars"]["geometry/gini"] == "NaN"
    assert content["columns"]["density"] == [0.5, "Infinity"]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", ValueError),
        ("[1]", ValueError),
        ('{"step": 1', ValueError),
        ('{"schema": 1}', ValueError),
        ('{"schema": 3, "anything": "else"}', SchemaError),
        (example().to_line().replace('["a", ', "["), ValueError),
        (example().to_line().replace('"NaN"', '"many"'), ValueError),
        (example().to_line().replace('"step": 3', '"step": Infinity'), ValueError),
        ("[" * 100_000, ValueError),
    ],
)
def test_what_is_no_record_is_a_value_error(line, error):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the type is compared
        Record.from_line(line)
    assert type(caught.value) is not SchemaError or error is SchemaError
    assert isinstance(caught.value, error)


def test_reading_skips_what_is_broken_and_says_so(tmp_path):
    path = tmp_path / record.FILE_NAME
    record.append(path, example(1))
    with open(path, "a", encoding="utf-8") as file:
        file.write("not a record\n" + example(2).to_line().replace('"schema": 2', '"schema": 7'))
    record.append(path, example(3))
    with open(path, "ab") as file:
        file.write(example(4).to_line().encode()[:70])
    records, notes = read(path)
    assert [entry.step for entry in records] == [1, 3]
    assert notes == [
        "geometry.jsonl: skipped 2 lines that cannot be read (line 2)",
        "geometry.jsonl: skipped 1 record of a later version of lightning_linf",
    ]


def test_a_write_that_failed_half_way_costs_no_other_record(tmp_path):
    path = tmp_path / record.FILE_NAME
    record.append(path, example(1))
    with open(path, "ab") as file:
        file.write(example(2).to_line().encode()[:70])
    record.append(path, example(3))
    records, notes = read(path)
    assert [entry.step for entry in records] == [1, 3]
    assert notes == ["geometry.jsonl: skipped 1 line that cannot be read (line 2)"]


def test_cut_moves_the_resumed_step_and_later_ones_and_drops_a_torn_line(tmp_path):
    path = tmp_path / record.FILE_NAME
    assert record.cut(path, 5) is None  # no file
    for step in (1, 3, 3, 5, 5, 7):
        record.append(path, example(step))
    with open(path, "ab") as file:
        file.write(b'{"step": 9, "sch')
    kept = record.cut(path, 5)
    assert kept == tmp_path / "geometry.1.jsonl"
    assert [entry.step for entry in read(kept)[0]] == [5, 5, 7]
    assert [entry.step for entry in read(path)[0]] == [1, 3, 3]
    with open(path, "ab") as file:
        file.write(b'{"st')
    assert record.cut(path, 5) is None  # nothing whole goes
    record.append(path, example(5))
    assert read(path) == ([*map(ExampleAt, (1, 3, 3, 5))], [])


class ExampleAt:
    """Equal to any record of a step."""

    def __init__(self, step):
        self.step = step

    def __eq__(self, other):
        return other.step == self.step


def test_another_trainings_file_is_kept_under_another_name(tmp_path):
    path = tmp_path / record.FILE_NAME
    for number in (1, 2):
        record.append(path, example(3))
        assert record.cut(path, 0) == tmp_path / f"geometry.{number}.jsonl"
        assert not path.exists()
    assert record.cut(path, 0) is None


def test_the_file_beside_a_logger_holds_everything_that_history_holds(tmp_path):
    logger = CSVLogger(tmp_path, name="csv", version="one")
    _, monitors = train([logger])
    records, notes = read(tmp_path / "csv" / "one" / record.FILE_NAME)
    assert notes == []
    for monitor in monitors:
        mine = [entry for entry in records if entry.tag == monitor.record_tag]
        assert len(mine) == len(monitor.history) > 0
        for entry, known in zip(mine, monitor.history, strict=True):
            assert entry.step == known["step"]
            assert entry.tensors == known["tensor_names"]
            for tag, value in entry.scalars.items():
                assert value == pytest.approx(
                    known[tag.removeprefix(quantities.PREFIX)], nan_ok=True
                )
            assert list(entry.columns) == list(known["per_tensor"])
            for name, column in known["per_tensor"].items():
                torch.testing.assert_close(
                    torch.tensor(entry.columns[name]), column, rtol=1e-6, atol=0, equal_nan=True
                )


def test_the_whole_gradients_row_and_histogram_are_recorded(tmp_path):
    _, (monitor, *_) = train([CSVLogger(tmp_path, name="", version="")], max_steps=4)
    entry, *_ = read(tmp_path / record.FILE_NAME)[0]
    assert entry.whole["density"] == pytest.approx(monitor.history[0]["density"])
    assert entry.whole["log10_quantiles"][3] == pytest.approx(
        monitor.history[0]["median_log10_grad"]
    )
    num_params = sum(p.numel() for p in Net().parameters())
    zeros = round(monitor.history[0]["zero_fraction"] * num_params)
    edges, counts = entry.histogram
    assert sum(counts) == num_params - zeros
    assert len(edges) == len(counts) + 1
    assert edges[0] <= entry.whole["log10_quantiles"][0]
    assert entry.whole["log10_quantiles"][-1] <= edges[-1]


def test_a_resumed_training_has_each_step_once(tmp_path):
    def logger():
        return TensorBoardLogger(tmp_path, name="run", version=0)

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 7:
                raise KeyboardInterrupt

    last = ModelCheckpoint(tmp_path, every_n_train_steps=5, filename="five")
    with pytest.raises(SystemExit):
        train([logger()], callbacks=[last, Stop()], enable_checkpointing=True, max_steps=12)
    path = tmp_path / "run" / "version_0" / record.FILE_NAME
    assert {entry.step for entry in read(path)[0]} == {1, 3, 5}
    options = {"callbacks": [last], "enable_checkpointing": True, "max_steps": 12}
    train([logger()], ckpt_path=tmp_path / "five.ckpt", **options)
    steps = [(entry.tag, entry.step) for entry in read(path)[0]]
    assert len(steps) == len(set(steps))
    assert {step for _, step in steps} == {1, 3, 5, 7, 9, 11}


def test_a_finished_training_continued_from_its_middle_loses_nothing(tmp_path, caplog):
    logger = partial(TensorBoardLogger, tmp_path, name="run", version=0)
    four = ModelCheckpoint(tmp_path, every_n_train_steps=4, filename="{step}", save_top_k=-1)
    options = {"callbacks": [four], "enable_checkpointing": True, "max_steps": 12}
    train([logger()], **options)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        train([logger()], ckpt_path=tmp_path / "step=4.ckpt", **options)
    folder = tmp_path / "run" / "version_0"
    kept = folder / "geometry.1.jsonl"
    assert {entry.step for entry in read(kept)[0]} == {5, 7, 9, 11}
    assert f"records from step 4 on of an earlier training are now in {kept}" in caplog.text
    steps = [(entry.tag, entry.step) for entry in read(folder / record.FILE_NAME)[0]]
    assert len(steps) == len(set(steps))
    assert {step for _, step in steps} == {1, 3, 5, 7, 9, 11}


def test_a_second_training_in_the_same_folder_starts_a_new_file(tmp_path):
    for _ in range(2):
        train([TensorBoardLogger(tmp_path, name="run", version=0)], max_steps=4)
    folder = tmp_path / "run" / "version_0"
    for name in ("geometry.jsonl", "geometry.1.jsonl"):
        assert {entry.step for entry in read(folder / name)[0]} == {1, 3}


def test_beside_a_remote_logger_each_run_has_its_own_in_the_trainers_folder(tmp_path):
    class Remote(Elsewhere):
        save_dir = "s3://bucket/logs"

    trainer, _ = train([Remote()], default_root_dir=tmp_path, max_steps=4)
    path = tmp_path / "project" / "abc123" / record.FILE_NAME
    assert _recording.jsonl_path(trainer) == path
    assert len(read(path)[0]) == 4
    remote = SimpleNamespace(
        loggers=[Remote()], logger=Remote(), default_root_dir="gs://bucket", is_global_zero=True
    )
    assert _recording.jsonl_path(remote) is None


def test_only_rank_zero_writes(tmp_path):
    trainer, _ = train([CSVLogger(tmp_path, name="run", version=0)], max_steps=4)
    assert len(list(_recording.writers(trainer, example()))) == 1
    other = SimpleNamespace(is_global_zero=False, loggers=trainer.loggers)
    assert list(_recording.writers(other, example())) == []
    _recording.start_jsonl(other, 0)
    assert (tmp_path / "run" / "version_0" / record.FILE_NAME).is_file()


def test_no_logger_and_trial_runs_write_nothing(tmp_path):
    train(False, default_root_dir=tmp_path)
    fit_one(CSVLogger(tmp_path, name="run"), fast_dev_run=True, default_root_dir=tmp_path)
    assert list(tmp_path.rglob("*.jsonl")) == []


def fit_one(logger, **options):
    """Train three steps with one monitor that goes on after errors."""
    monitor = GradientHeterogeneityMonitor(1)
    trainer = lightning.Trainer(
        max_steps=3,
        logger=[logger],
        callbacks=[monitor],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **options,
    )
    trainer.fit(Net(), data())
    return monitor


class Elsewhere(Logger):
    """A logger that keeps its numbers in another place."""

    name, version, save_dir = "project", "abc123", None

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        pass


def test_other_loggers_have_it_where_their_checkpoints_lie(tmp_path):
    trainer, _ = train([Elsewhere()], default_root_dir=tmp_path, max_steps=4)
    path = tmp_path / "project" / "abc123" / record.FILE_NAME
    assert _recording.jsonl_path(trainer) == path
    assert len(read(path)[0]) == 4


def test_a_file_that_cannot_be_written_is_said_once_and_training_goes_on(tmp_path, monkeypatch):
    def fail(path, entry):
        raise OSError("disk full")

    monkeypatch.setattr(record, "append", fail)
    with pytest.warns(UserWarning, match="GradientHeterogeneityMonitor") as seen:
        monitor = fit_one(CSVLogger(tmp_path, name="run"))
    assert len(monitor.history) == 3
    messages = [str(w.message) for w in seen if "GradientHeterogeneity" in str(w.message)]
    assert len(messages) == 2
    assert re.search(r"could not write to .+geometry.jsonl at step 0 .* disk full", messages[0])
    assert "3 failures in all" in messages[1]


def test_hyperparameters_and_a_layout_are_in_the_event_file(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
    from tensorboard.plugins.hparams import metadata

    logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False)
    train([logger])
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    content = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    start = metadata.parse_session_start_info_plugin_data(content)
    assert {name: value.number_value for name, value in start.hparams.items()} == {
        "width": 6,
        "lr": 0.05,
    }
    (event,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    patterns = [tag for c in layout.category for chart in c.chart for tag in chart.multiline.tag]
    logged = [tag for tag in events.Tags()["scalars"] if tag.startswith(quantities.PREFIX)]
    for pattern in patterns:
        assert any(re.match(pattern, tag) for tag in logged), pattern
    assert events.Tags()["histograms"] == [quantities.LOG10_GRAD.tag]
    (histogram, *_) = events.Histograms(quantities.LOG10_GRAD.tag)
    first = next(e for e in read(tmp_path / "run" / record.FILE_NAME)[0] if e.histogram)
    assert histogram.histogram_value.num == sum(first.histogram.counts)
