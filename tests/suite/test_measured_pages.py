"""Tables of pages are those of the committed results."""

import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not (ROOT / "benchmarks").is_dir(), reason="benchmarks are not in the wheel"
)


@pytest.fixture
def write_measured(monkeypatch):
    """Import the script, and forget it and what it imports from benchmarks/ afterwards."""
    for folder in ("benchmarks", "docs"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    known = set(sys.modules)
    yield importlib.import_module("write_measured")
    names = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} | {"write_measured"}
    for name in names & (set(sys.modules) - known):
        del sys.modules[name]


def test_tables_are_those_of_the_results(write_measured):
    shown = []
    for name in write_measured.PAGES:
        page = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert write_measured.filled(page) == page, "run `python docs/write_measured.py`"
        shown += re.findall(r"<!-- measured: (\w+) -->", page)
    assert sorted(shown) == sorted(write_measured.SECTIONS)


def test_a_package_that_failed_is_said_to_have(write_measured):
    row, base = (
        write_measured.Row("a", "a 1.0", failure="not installed"),
        write_measured.Row("b", "b", 2.0),
    )
    assert write_measured.over(row, base) == "failed: not installed"
    assert write_measured.over(base, base) == "1.00"
