"""Benchmarks run at sizes that mean nothing; each says first what its result rests on."""

import importlib
import math
import multiprocessing.util
import os
import re
import runpy
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from support.chromium import needs_chromium
from torch.multiprocessing import ProcessRaisedException

import lightning_linf

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks are not in the wheel")


@pytest.fixture
def load(monkeypatch):
    """Import a module of the folder as its scripts do."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    known = set(sys.modules)
    yield importlib.import_module
    names = {path.stem for path in BENCHMARKS.glob("*.py")}
    for name in names & (set(sys.modules) - known):
        del sys.modules[name]  # names such as `all` are for the scripts alone


@pytest.fixture
def printed(load, monkeypatch, capfd):
    """Run a script, and give the lines that it prints."""

    def run(name, *arguments):
        path = str(BENCHMARKS / f"{name}.py")
        monkeypatch.setattr(sys, "argv", [path, *arguments])
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        runpy.run_path(path, run_name="__main__")
        return capfd.readouterr().out.splitlines()

    return run


def test_every_benchmark_prints_the_heading_before_all_else():
    sources = {path.name: path.read_text(encoding="utf-8") for path in BENCHMARKS.glob("*.py")}
    mains = {
        name: text.split("def main()")[1] for name, text in sources.items() if "main()" in text
    }
    del mains["rival_worker.py"]  # prints for rivals.py alone
    assert len(mains) >= 10
    for name, text in mains.items():
        assert "heading(" in text.split("print(")[0], name


def test_the_heading_has_command_versions_device_date_and_commit(monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / "rotation.py"), "--sizes", "1e6"])
    monkeypatch.chdir(BENCHMARKS.parent)
    runpy.run_path(str(BENCHMARKS / "stopwatch.py"))["heading"]()
    command, rest, commit, empty = capsys.readouterr().out.splitlines()
    assert command == "# OMP_NUM_THREADS=2 python benchmarks/rotation.py --sizes 1e6"
    assert rest.startswith(f"# lightning_linf {version(lightning_linf.__name__)}, torch ")
    assert re.search(r", \d+ of \d+ CPU cores, \d{4}-\d\d-\d\d$", rest)
    assert re.fullmatch("# commit (unknown|[0-9a-f]{12}(, with changes)?)", commit)
    assert empty == ""


def test_a_benchmark_runs_without_git(load, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert load("stopwatch").commit() == "unknown"


def test_what_is_printed_is_kept_as_it_comes(load, monkeypatch, tmp_path, capsys):
    stopwatch = load("stopwatch")
    monkeypatch.setattr(stopwatch, "RESULTS", tmp_path)
    for text, mode in (("one", "w"), ("two", "w"), ("three", "a")):
        with stopwatch.kept_in_file("name", torch.device("cpu"), mode=mode):
            print(text, flush=True)
            (file,) = tmp_path.iterdir()
            assert text in file.read_text()
    assert re.fullmatch(r"name-\d{4}-\d\d-\d\d-cpu.txt", file.name)
    assert file.read_text() == "two\nthree\n"
    assert "one" in capsys.readouterr().out


def test_medians_take_turns_and_leave_out_the_first_round(load):
    calls = []
    actions = {name: lambda name=name: calls.append(name) for name in "ab"}
    load("stopwatch").medians(actions, torch.device("cpu"), rounds=2)
    assert "".join(calls) == "ababab"


@pytest.mark.parametrize(
    ("bar", "goal", "value", "expected"),
    [
        (2.0, 1.0, 1.0, "met, goal"),
        (2.0, 1.0, 1.5, "met, bar"),
        (2.0, None, 2.0, "met, bar"),
        (2.0, 1.0, 2.1, "FALLS SHORT"),
        (None, 1.0, 1.1, "FALLS SHORT"),
        (2.0, 1.0, math.nan, "FALLS SHORT"),
        (None, None, 3.0, "no target here"),
        (2.0, 1.0, None, "not measured: no reason"),
    ],
)
def test_verdicts(load, bar, goal, value, expected):
    targets = load("targets")
    found = targets.verdict(targets.Target(bar, goal), targets.Measured(value, "no reason"))
    assert found == expected


def test_peak_counts_what_is_in_use_at_once(load):
    x = torch.randn(100_000)

    def action():
        y = x + 1
        z = y[1:] * 2  # two vectors at once
        del y
        return (z * z).sum()  # two again

    peak = load("live_memory").peak_bytes(action, torch.device("cpu"))
    assert peak == pytest.approx(2 * 400_000, rel=0.01)


def test_fits_of_powers_are_exact_for_powers_and_state_an_error_else(load):
    fit_power = load("power_law").fit_power
    sizes = [10.0, 100.0, 1e4]
    fit = fit_power(sizes, [3 * size**1.5 for size in sizes])
    assert fit == pytest.approx((1.5, 0.0, 1.5), abs=1e-12)
    # logarithms 0, 1, 3 at 0, 1, 2: slope 3/2, residuals 1/6, -1/3, 1/6
    fit = fit_power([1.0, math.e, math.e**2], [1.0, math.e, math.e**3])
    assert fit == pytest.approx((1.5, math.sqrt(1 / 6 / 1 / 2), 2.0))


@pytest.mark.parametrize(
    ("code", "limit", "expected"),
    [
        ("print('done')", 600, "exit 0"),
        ("1 / 0", 600, "exit 1"),
        ("while 1: pass", 1, "longer than"),
    ],
)
def test_parts_of_a_loan_of_a_gpu_say_how_they_ended(load, capsys, code, limit, expected):
    gpu = load("gpu")
    outcome = gpu.run(gpu.Part(["-c", code], limit))
    assert outcome.startswith(expected)
    assert f"# {expected}" in capsys.readouterr().out


def test_files_of_parts_are_there(load):
    for name, part in load("gpu").PARTS.items():
        for arguments in (part.arguments, part.tiny):
            assert arguments[0] == "-m" or (BENCHMARKS.parent / arguments[0]).is_file(), name


def test_a_group_that_fails_or_takes_too_long_is_not_measured(load, monkeypatch):
    pytest.importorskip("transformers", reason="needs lightning-linf[recipes]")
    everything = load("all")

    def fail(sizes, device):
        raise RuntimeError("broken")

    groups = {
        "fails": ({"tiny": None}, fail, ["probe"]),
        "hangs": ({"tiny": None}, lambda sizes, device: time.sleep(600), ["probe"]),
    }
    monkeypatch.setattr(everything, "GROUPS", groups)
    found = [
        everything.measure_group(name, "tiny", torch.device("cpu"), limit=limit)["probe"]
        for name, limit in (("fails", 600), ("hangs", 0.2))
    ]
    assert [value for value, _ in found] == [None, None]
    assert [note for _, note in found] == ["RuntimeError: broken", "took longer than 0.2 s"]


def test_groups_give_the_lines_that_they_promise_and_every_line_is_given(load):
    pytest.importorskip("transformers", reason="needs lightning-linf[recipes]")
    everything = load("all")
    keys = [key for _, _, keys in everything.GROUPS.values() for key in keys]
    assert keys == list(load("targets").LINES)
    for name in ("rotation", "probe", "control", "xl"):
        found = everything.measure_group(name, "tiny", torch.device("cpu"), limit=600)
        assert list(found) == everything.GROUPS[name][2]
        assert all(value is None or value > 0 for value, _ in found.values())


@pytest.mark.slow
def test_all_prints_a_line_for_everything(load, printed):
    lines = printed("all", "--tiny")
    assert sum("not measured: only on CUDA" in line for line in lines) == 2
    for entry in load("targets").LINES.values():
        assert any(line.startswith(entry.what) for line in lines)
    assert not any("Error" in line or "took longer" in line for line in lines)


@pytest.mark.slow
def test_all_parts_of_a_loan_of_a_gpu_run_on_a_cpu_at_a_size_that_means_nothing(load, printed):
    pytest.importorskip("transformers", reason="needs lightning-linf[recipes]")
    lines = printed("gpu", "--tiny")
    for name in load("gpu").IN_A_LOAN:
        assert f"# {name}: exit 0" in lines


@pytest.mark.slow
def test_scaling_prints_every_table_and_its_exponents(printed):
    text = "\n".join(printed("scaling", "--tiny"))
    for varied in ("d", "probes", "blocks", "ranks"):
        assert re.search(rf"~ {varied} \^ -?\d+\.\d\d \+- ", text), varied


def test_ranks_of_benchmarks_give_what_they_return_and_end_before_python_takes_itself_apart(load):
    def double(rank, number):
        multiprocessing.util.Finalize(None, os.abort, exitpriority=0)  # for when Python ends
        return {"rank": rank, "double": 2 * number}

    found = load("gloo_ranks").on_ranks(2, double, 21, start_method="fork")
    assert found == [{"rank": 0, "double": 42}, {"rank": 1, "double": 42}]


def test_an_exception_on_a_rank_of_a_benchmark_is_raised(load):
    def fail(rank):
        assert rank != 1, "this one fails"
        torch.distributed.barrier()

    with pytest.raises(ProcessRaisedException, match=r"Process 1 .*\n.*(\n.*)+this one fails"):
        load("gloo_ranks").on_ranks(2, fail, start_method="fork")


@pytest.mark.slow
def test_a_rotation_of_shards_is_exchanged_in_less_memory_than_gathered(printed):
    lines = printed("sharded_rotation", "--width", "200", "--ranks", "2", "--rounds", "1")
    rows = [line.split() for line in lines if re.match(" 2   (exchanged|gathered)", line)]
    exchanged, gathered = ([float(cell) for cell in row[2:]] for row in rows)
    assert 0 < exchanged[2] < 13.5  # sent, in shards
    assert gathered[2] == pytest.approx(3, abs=0.01)
    assert 0 < exchanged[4] < gathered[4]  # peak, in shards


@pytest.mark.slow
def test_products_of_processes_take_turns_and_errors_are_those_of_rounding(printed):
    others = ["curvlinops", "hessian-eigenthings", "PyHessian"]  # would have to be installed
    options = ("--only", "products", "--rounds", "2", "--limit", "1800", "--without", *others)
    lines = printed("rivals", "--tiny", *options)
    for name in ("lightning_linf", "torch.func"):
        (line,) = [line for line in lines if line.startswith(name)]
        assert float(line.split()[-1]) < 1e-5


@pytest.mark.slow
def test_an_eigenvalue_is_that_of_the_whole_hessian_and_the_result_is_kept(
    load, printed, monkeypatch, tmp_path
):
    monkeypatch.setattr(load("stopwatch"), "RESULTS", tmp_path)
    others = ["curvlinops", "hessian-eigenthings", "PyHessian", "Cockpit", "torch.func.hessian"]
    options = ("--only", "eigenvalues", "--rounds", "1", "--limit", "1800", "--without", *others)
    assert "lightning_linf" in "".join(printed("rivals", "--save", *options))
    (path,) = tmp_path.iterdir()
    exact, ours = load("rival_result").Result.load(path).parts["eigenvalues"]
    assert exact.value[0] == pytest.approx(ours.value[0], rel=1e-4)
    assert ours.value[0] <= exact.value[0] * (1 + 1e-6) <= ours.value[1] * (1 + 2e-6)
    assert ours.median > 0
    assert ours.failure == ""


@pytest.mark.slow
def test_a_competitor_that_fails_is_said_to_have(load, capsys, monkeypatch):
    processes = load("rival_processes")
    monkeypatch.setattr(processes, "environment", lambda name, limit: sys.executable)
    competitors = processes.Competitors("products", ["no such name"], "cpu", "tiny", limit=600.0)
    assert competitors.running == {}
    assert "KeyError: 'no such name'" in competitors.failures["no such name"]
    assert "no such name failed: ended: KeyError: 'no such name'" in capsys.readouterr().out


@pytest.mark.slow
def test_edges_and_rates_are_printed_for_each_optimizer(printed):
    names = ("SGD", "rotated Adam")
    lines = printed(
        "edge", "--steps", "60", "--every", "20", "--points", "20", "--optimizers", *names
    )
    assert [sum(line.startswith(f"{name}  ") for line in lines) for name in names] == [4, 4]


def test_adaptive_smoothness_is_known_and_lies_between_its_ends(printed):
    options = ("--models", "graph", "--hvps", "12", "--seeds", "1")
    rows = [line.split() for line in printed("adaptive_smoothness", *options)]
    rows = [row for row in rows if len(row) == 9]
    assert [row[0] for row in rows] == ["tensor", "row", "coordinate"]
    for row in rows:
        known, _, lower, upper = (float(cell.rstrip("%")) for cell in row[3:7])
        assert 0 <= known < 0.1  # %
        assert 0.5 < lower <= 1.001 <= upper + 0.002 < 3.0


def test_a_predicted_memory_is_that_of_its_parts(printed):
    pytest.importorskip("transformers", reason="needs lightning-linf[recipes]")
    line = printed("predicted_memory", "--only", "tiny")[-1]
    graph, product, vector, peak, offloaded = map(float, re.findall(r"(\S+) GiB", line))
    assert graph + product + 3 * vector < offloaded < peak
    assert peak == pytest.approx(graph + product + 10 * vector, rel=0.03)


def test_commands_of_the_first_minutes_are_those_of_the_pages(load):
    module = load("first_minutes")
    pages = [BENCHMARKS.parent / name for name in ("README.md", "docs/start.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    for name, command in module.STEPS.items():
        assert name == "clone" or re.search(rf"^{re.escape(command)}(  |$)", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.skipif(not (BENCHMARKS.parent / ".git").exists(), reason="no repository")
def test_a_fresh_clone_is_timed(printed):
    assert re.fullmatch(r"the clone  \d+", printed("first_minutes", "--only", "clone")[-1])


@pytest.mark.slow
@needs_chromium
def test_the_panels_benchmark_times_each_reader_and_all_runs(printed):
    pytest.importorskip("tensorboard")
    lines = printed("panels", "--layers", "3", "--steps", "3", "--runs", "2")
    for reader in (True, False):
        start = lines.index(f"--load_fast={str(reader).lower()}")
        for what in ("all events read", "layers again", "page drawn by", "all 2 runs drawn after"):
            assert any(what in line for line in lines[start : start + 14]), what
