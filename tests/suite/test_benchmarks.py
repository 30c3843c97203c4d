"""Every benchmark says first what its result rests on."""

import re
import runpy
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import lightning_linf

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="benchmarks are not in the wheel")


def test_every_benchmark_prints_the_heading_before_all_else():
    sources = {path.name: path.read_text(encoding="utf-8") for path in BENCHMARKS.glob("*.py")}
    mains = {
        name: text.split("def main()")[1] for name, text in sources.items() if "main()" in text
    }
    del mains["gpu.py"]  # runs the others, and keeps what they print
    assert len(mains) >= 6
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
