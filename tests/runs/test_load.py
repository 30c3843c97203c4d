"""What the report finds and reads: linked, damaged, contradictory and very large sources."""

import json
import math
import os
import struct
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from support.records import read
from support.reports import make_report

from lightning_linf import quantities, record
from lightning_linf.cli import main
from lightning_linf.html.page import make_page
from lightning_linf.panels.table import lay_out, stack, thin
from lightning_linf.record import Record
from lightning_linf.report.text import describe
from lightning_linf.runs import events
from lightning_linf.runs.load import load
from lightning_linf.runs.run import MAX_STEPS, Run

TAG = "geometry/heterogeneity_per_tensor"
needs_links = pytest.mark.skipif(os.name != "posix", reason="needs links and pipes")


def entry(step, value=None, names=("a", "b")):
    density = [float(step if value is None else value)] * len(names)
    columns = {"density": density, "log10_quantiles": [[-3.0] * 7] * len(names)}
    return Record(step, TAG, {quantities.DENSITY.tag: density[0]}, list(names), columns)


def write_lines(folder, *records):
    folder.mkdir(parents=True, exist_ok=True)
    for one in records:
        record.append(folder / record.FILE_NAME, one)
    return folder


def names(*folders):
    return [run.name for run in load(folders)]


def test_a_run_says_where_its_processes_were_started_again(tmp_path):
    lives = [entry(1), *(replace(entry(step), restart=1) for step in (2, 3))]
    write_lines(tmp_path / "run", *lives, replace(entry(4), restart=3))
    (run,) = load([tmp_path])
    assert run.notes == [
        f"run: after restart {number} of the processes, the first record is of step {step}"
        for number, step in ((1, 2), (3, 4))
    ]


@needs_links
def test_linked_runs_are_found_as_tensorboard_finds_them(tmp_path):
    run = write_lines(tmp_path / "far" / "version_0", entry(1))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "baseline").symlink_to(run)
    (tmp_path / "logs" / "nowhere").symlink_to(tmp_path / "gone")
    assert names(tmp_path / "logs") == ["baseline"]
    write_lines(tmp_path / "logs" / "new", entry(1))
    assert names(tmp_path / "logs") == ["baseline", "new"]
    file = tmp_path / "logs" / "by_file"
    file.mkdir()
    (file / record.FILE_NAME).symlink_to(run / record.FILE_NAME)
    assert names(tmp_path / "logs") == ["baseline", "by_file", "new"]


@needs_links
def test_each_folder_is_read_once_by_its_own_name_and_loops_end(tmp_path):
    write_lines(tmp_path / "z" / "run", entry(1))
    (tmp_path / "a_link").symlink_to("z")
    (tmp_path / "z" / "run" / "loop").symlink_to(tmp_path)
    (tmp_path / "z" / "self").symlink_to(".")
    assert names(tmp_path) == ["run"]
    assert names(tmp_path, tmp_path / "a_link") == ["run"]
    assert names(tmp_path / "a_link") == ["run"]


@needs_links
def test_a_pipe_of_that_name_is_passed_over(tmp_path):
    write_lines(tmp_path / "good", entry(1))
    for name in (record.FILE_NAME, "events.out.tfevents.1.x.1"):
        (tmp_path / name).mkdir()
        os.mkfifo(tmp_path / name / name)
    assert names(tmp_path) == ["good"]


def write_events(folder, *records, **scalars):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    from torch.utils.tensorboard import SummaryWriter

    from lightning_linf.tensorboard.writer import write_record

    writer = SummaryWriter(str(folder), **scalars)
    for one in records:
        write_record(writer, one)
        for tag, value in one.scalars.items():
            writer.add_scalar(tag, value, one.step)
    writer.close()
    return sorted(folder.glob("events.out.tfevents.*"))[-1]


@pytest.mark.parametrize(
    ("content", "note"),
    [("", []), ("{\n", ["run: geometry.jsonl: skipped 1 line that cannot be read (line 1)"])],
)
def test_beside_a_file_without_records_the_event_files_are_read(tmp_path, content, note):
    write_events(tmp_path / "run", entry(1), entry(2))
    (tmp_path / "run" / record.FILE_NAME).write_text(content)
    (run,) = load([tmp_path])
    assert run.tables[TAG].steps == [1, 2]
    assert [*run.scalars[quantities.DENSITY.tag]] == [(1, 1.0), (2, 2.0)]
    assert run.notes == note


def frames(data):
    """Give the places and lengths of the records of an event file, of which the first names it."""
    found, place = [], 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        found.append((place, 16 + length))
        place += 16 + length
    return found


def damaged(tmp_path, capsys, damage):
    """Damage a run of four records, a table and a scalar each; give the run and what is said."""
    file = write_events(tmp_path / "run", *map(entry, (1, 2, 3, 4)))
    data = bytearray(file.read_bytes())
    records = frames(data)
    assert len(records) == 1 + 2 * 4
    damage(data, records)
    file.write_bytes(data)
    page = tmp_path / "report.html"
    assert main(["report", str(tmp_path), "-o", str(page)]) == 0
    (run,) = load([tmp_path])
    (note,) = run.notes
    assert json.dumps(note)[1:-1] in page.read_text(encoding="utf-8")
    assert f"Note: {note}\n" in capsys.readouterr().out
    return run, note.removeprefix(f"run: {file.name} "), records


def test_a_damaged_record_costs_no_other(tmp_path, capsys):
    def damage(data, records):
        for at, length in records[3:5]:  # the table and the scalar of step 2
            data[at + length - 12 : at + length - 8] = b"\xff" * 4

    run, note, records = damaged(tmp_path, capsys, damage)
    assert run.tables[TAG].steps == [1, 3, 4]
    assert [step for step, _ in run.scalars[quantities.DENSITY.tag]] == [1, 3, 4]
    num_bytes = sum(length for _, length in records[3:5])
    assert note == f"is damaged: {num_bytes} bytes in 2 places could not be read"


@pytest.mark.parametrize("window", [1, 2**20])
def test_where_a_length_is_damaged_the_next_one_is_found(tmp_path, capsys, monkeypatch, window):
    def damage(data, records):
        at, _ = records[3]
        data[at : at + 4] = b"\xff" * 4

    monkeypatch.setattr(events, "_WINDOW", window)
    run, note, records = damaged(tmp_path, capsys, damage)
    assert run.tables[TAG].steps == [1, 3, 4]
    assert [step for step, _ in run.scalars[quantities.DENSITY.tag]] == [1, 2, 3, 4]
    assert note == f"is damaged: {records[3][1]} bytes in 1 place could not be read"


def test_where_no_length_follows_the_rest_is_lost_and_said(tmp_path, capsys):
    def damage(data, records):
        at, _ = records[5]
        data[at:] = b"\xff" * (len(data) - at)

    run, note, records = damaged(tmp_path, capsys, damage)
    assert run.tables[TAG].steps == [1, 2]
    left = sum(length for _, length in records[5:])
    assert note == f"is damaged: {left:,} bytes in 1 place could not be read"


@pytest.mark.parametrize("left", [5, 30])
def test_an_end_within_a_record_is_said(tmp_path, capsys, left):
    def damage(data, records):
        del data[records[-1][0] + left :]

    run, note, _ = damaged(tmp_path, capsys, damage)
    assert run.tables[TAG].steps == [1, 2, 3, 4]
    assert note == f"is not whole: its last record, {left} bytes, could not be read"


def test_another_packages_unfinished_file_is_no_run(tmp_path):
    write_lines(tmp_path / "good", entry(1))
    (tmp_path / "other").mkdir()
    file = write_events(tmp_path / "other")
    file.write_bytes(file.read_bytes()[:-3])
    assert names(tmp_path) == ["good"]


def test_damaged_lines_in_the_middle_are_counted_and_cost_no_other(tmp_path, capsys):
    path = write_lines(tmp_path / "run", *map(entry, range(9))) / record.FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:40] + b"\x00\xff\xfe" * 9 + lines[3][60:]
    lines[5] = lines[5].replace(b'"tensors"', b'"tensorz"')
    path.write_bytes(b"".join(lines))
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "report.html")]) == 0
    note = "run: geometry.jsonl: skipped 2 lines that cannot be read (line 4)"
    assert f"Note: {note}\n" in capsys.readouterr().out
    (run,) = load([tmp_path])
    assert run.tables[TAG].steps == [0, 1, 2, 4, 6, 7, 8]


def test_a_line_beyond_all_bounds_is_skipped_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr(record.jsonl, "_MAX_LINE_BYTES", 2000)
    path = write_lines(tmp_path / "run", entry(1)) / record.FILE_NAME
    with open(path, "ab") as file:
        file.write(b" " * 9000 + entry(2).to_line().encode())
    record.append(path, entry(3))
    records, notes = read(path)
    assert [one.step for one in records] == [1, 3]
    assert notes == ["geometry.jsonl: skipped 1 line that cannot be read (line 2)"]


def test_what_a_training_that_went_back_measures_anew_replaces_the_old(tmp_path):
    write_events(tmp_path / "run", *map(entry, (1, 2, 3, 4, 5)))
    later = write_events(tmp_path / "later", entry(3, 30), purge_step=3)
    later.rename(tmp_path / "run" / "events.out.tfevents.9999999999.x.1")
    (run,) = load([tmp_path])
    assert run.tables[TAG].steps == [1, 2, 3]
    assert run.tables[TAG].values[:, 0, 0].tolist() == [1.0, 2.0, 30.0]
    assert [*run.scalars[quantities.DENSITY.tag]] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def with_report(step, loss):
    report = make_report(loss=loss, secant={"global": math.inf}).to_dict()
    return replace(entry(step), tag="geometry/smoothness_per_tensor", report=report)


@pytest.mark.parametrize("write", [write_lines, write_events])
def test_of_a_step_measured_twice_the_later_report_counts(tmp_path, write):
    write(tmp_path / "run", with_report(1, 1.0), with_report(4, 2.0), with_report(4, 3.0))
    (run,) = load([tmp_path])
    assert run.report_step == 4
    assert run.report == describe(make_report(loss=3.0, secant={"global": math.inf}))
    assert "inf" in {cell for row in run.report.rows for cell in row}


def test_reports_of_steps_that_a_training_went_back_over_are_forgotten(tmp_path):
    write_events(tmp_path / "run", with_report(1, 1.0), with_report(5, 2.0))
    later = write_events(tmp_path / "later", entry(2), purge_step=2)
    later.rename(tmp_path / "run" / "events.out.tfevents.9999999999.x.1")
    (run,) = load([tmp_path])
    assert (run.report_step, run.notes) == (1, [])


def test_a_report_in_a_torn_line_gives_its_place_to_the_one_before(tmp_path):
    path = (
        write_lines(tmp_path / "run", with_report(1, 1.0), with_report(2, 2.0)) / record.FILE_NAME
    )
    path.write_bytes(path.read_bytes()[:-40])
    (run,) = load([tmp_path])
    assert run.report_step == 1
    assert run.notes == ["run: geometry.jsonl: skipped 1 line that cannot be read (line 2)"]


@pytest.mark.parametrize("write", [write_lines, write_events])
def test_a_long_run_is_thinned_as_if_all_of_it_had_been_read(tmp_path, write):
    steps = [*range(0, 1400, 2), *range(1000, 1500, 4)]  # it went back to step 1000
    entries = [entry(step, 0.001 * i) for i, step in enumerate(steps)]
    write(tmp_path / "run", *entries)
    (run,) = load([tmp_path])
    rows = [(one.step, lay_out(one)[0]) for one in entries]
    whole, _ = stack(lay_out(entries[0])[1], rows)
    expected = whole.thinned(MAX_STEPS)
    table = run.tables[TAG]
    assert len(table.steps) == MAX_STEPS
    assert (table.steps, table.num_steps) == (expected.steps, expected.num_steps)
    np.testing.assert_array_equal(table.values, expected.values)
    data = make_page([run]).partition('id="data">')[2].partition("</script>")[0]
    curve = json.loads(data)["scalars"]["run"]["curves"][quantities.DENSITY.tag]
    numbers = [*range(500), *range(700, len(steps))]  # of the entries that count
    kept = [numbers[i] for i in thin(len(numbers), MAX_STEPS)]
    assert curve["steps"] == [steps[i] + 1 for i in kept]
    assert curve["values"] == pytest.approx([0.001 * i for i in kept])
    assert curve["num_steps"] == len(numbers)


@pytest.mark.parametrize("write", [write_lines, write_events])
def test_what_is_cut_off_while_it_is_read_is_said(tmp_path, monkeypatch, write):
    write(tmp_path / "run", *map(entry, range(4)))
    (path,) = (tmp_path / "run").iterdir()
    add_table = Run.add_table

    def cut(*args):
        os.truncate(path, path.stat().st_size // 2)
        add_table(*args)

    monkeypatch.setattr(Run, "add_table", cut)
    (run,) = load([tmp_path])
    assert run.tables[TAG].steps in ([0, 1], [0, 1, 2])
    (note,) = run.notes
    assert note in [
        f"run: {TAG}: {count} left out" for count in ("1 broken record", "2 broken records")
    ]


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for number, count in enumerate((MAX_STEPS, 4 * MAX_STEPS)):
        parameters = [f"layers.{i}.weight" for i in range(15)]
        records = (entry(step, names=parameters) for step in range(count))
        folder = write_lines(tmp_path / str(number), *records)
        size = (folder / record.FILE_NAME).stat().st_size
        tracemalloc.start()
        load([folder])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    added = peaks[1] - peaks[0]
    assert added < 0.05 * size, f"{added:,} bytes more for a file of {size:,}"


def claiming(kind):
    """Make a tensor of few bytes that claims very many entries, or none that can be made."""
    from tensorboard.compat.proto import types_pb2
    from tensorboard.compat.proto.tensor_pb2 import TensorProto
    from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto

    sizes = {"float_val": (2**40,), "half_val": (2**32, 2**32), "negative": (-1,)}.get(
        kind, (2**41,)
    )
    dims = [TensorShapeProto.Dim(size=size) for size in sizes]
    values = {
        "float_val": {"dtype": types_pb2.DT_FLOAT, "float_val": [1.0]},
        "double_val": {"dtype": types_pb2.DT_DOUBLE, "double_val": [1.0]},
        "half_val": {"dtype": types_pb2.DT_HALF, "half_val": [1]},
        "int_val": {"dtype": types_pb2.DT_INT32, "int_val": [1]},
        "string_val": {"dtype": types_pb2.DT_STRING, "string_val": [b"a"]},
        "tensor_content": {"dtype": types_pb2.DT_FLOAT, "tensor_content": b"\0" * 8},
        "negative": {"dtype": types_pb2.DT_FLOAT, "float_val": [1.0]},
        "of no type": {"dtype": 99},
    }
    return TensorProto(tensor_shape=TensorShapeProto(dim=dims), **values[kind])


KINDS = [
    *("float_val", "double_val", "half_val", "int_val", "string_val", "tensor_content"),
    *("negative", "of no type"),
]


def write_tensor(folder, tensor, step):
    """Add an event with a tensor to the series of `entry`."""
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, Summary, SummaryMetadata
    from torch.utils.tensorboard import SummaryWriter

    metadata = lay_out(entry(0))[1]
    content = json.dumps({"schema": 1, **metadata.to_json()}).encode()
    plugin = SummaryMetadata.PluginData(plugin_name="geometry", content=content)
    about = SummaryMetadata(plugin_data=plugin, data_class=DATA_CLASS_TENSOR)
    value = Summary.Value(tag=metadata.tag_of_series(TAG), tensor=tensor, metadata=about)
    writer = SummaryWriter(str(folder), filename_suffix=f".{step}")
    writer._get_file_writer().add_summary(Summary(value=[value]), step)
    writer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_that_claims_more_than_it_holds_is_left_out(tmp_path, kind):
    write_events(tmp_path / "run", entry(1))
    write_tensor(tmp_path / "run", claiming(kind), 2)
    (run,) = load([tmp_path])
    assert run.tables[TAG].steps == [1]
    assert run.notes == [f"run: {TAG}: 1 broken record left out"]
    from support.geometry_tab import Plugin

    status, layers = Plugin(tmp_path).request("/layers", run="run", tag=TAG, column="density")
    assert status == 200
    assert layers["steps"] == [2]
    assert layers["note"] == "1 broken record left out"


def test_a_scalar_that_claims_to_be_many_is_refused_in_words(tmp_path):
    write_events(tmp_path / "run", entry(1))
    from support.geometry_tab import Plugin
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.scalar.metadata import create_summary_metadata
    from torch.utils.tensorboard import SummaryWriter

    about = create_summary_metadata("", "")
    value = Summary.Value(tag=quantities.GINI.tag, tensor=claiming("float_val"), metadata=about)
    writer = SummaryWriter(str(tmp_path / "run"), filename_suffix=".b")
    writer._get_file_writer().add_summary(Summary(value=[value]), 2)
    writer.close()
    status, answer = Plugin(tmp_path).request("/scalars", run="run")
    assert status == 400
    assert "run holds a scalar that is not one number" in answer["error"]


def test_other_plugins_decode_as_before():
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    from tensorboard.util import tensor_util

    from lightning_linf.tensorboard.plugin.bounded import bounded

    filled = tensor_util.make_tensor_proto(1.0)
    filled.tensor_shape.dim.add(size=10_000)  # one value stands for all
    with bounded():
        assert tensor_util.make_ndarray(filled).shape == (0,)
        with ThreadPoolExecutor(1) as other:
            assert other.submit(tensor_util.make_ndarray, filled).result().shape == (10_000,)
    assert tensor_util.make_ndarray(filled).shape == (10_000,)
