"""Files that earlier versions have written are read; each version that is released adds its own."""

from importlib.metadata import version
from pathlib import Path

import pytest
from support.records import read

from lightning_linf import quantities
from lightning_linf.html.page import make_page
from lightning_linf.record import FILE_NAME, SCHEMA_VERSION
from lightning_linf.report import GeometryReport, text_of
from lightning_linf.runs.load import load

WRITTEN = Path(__file__).parent / "written"
VERSIONS = sorted(folder.name for folder in WRITTEN.iterdir())
WITHOUT_REPORTS = {"schema_1"}
every_version = pytest.mark.parametrize("written", VERSIONS)


@every_version
def test_records_of_every_version_are_read_whole(written):
    records, notes = read(WRITTEN / written / FILE_NAME)
    assert notes == []
    assert [record.step for record in records] == [1, 1, 1, 3, 3, 3]
    for record in records:
        assert record.tensors == [
            f"layers.{i}.{name}" for i in (0, 2) for name in ("weight", "bias")
        ]
        assert set(record.scalars) <= known_tags(), "a tag was renamed"
    smoothness = [r for r in records if r.tag == quantities.SMOOTHNESS.record_tag]
    assert [r.report is not None for r in smoothness] == [written not in WITHOUT_REPORTS] * 2


def known_tags():
    partitions = ("coordinate", "row", "tensor", "global")
    tags = set()
    for quantity in vars(quantities).values():
        if isinstance(quantity, quantities.PartitionScalar):
            tags |= {quantity.of(name) for name in partitions}
        elif isinstance(quantity, quantities.Scalar):
            tags.add(quantity.tag)
    return tags


@every_version
def test_reports_of_every_version_are_read_and_put_into_words(written):
    report = GeometryReport.load(WRITTEN / written / "report.json")
    assert report.num_params == 19
    assert report.verdict_status == "undecided"
    assert "d = 19" in str(report)
    records, _ = read(WRITTEN / written / FILE_NAME)
    for record in records:
        if record.report is not None:
            assert "d = 19" in " ".join(text_of(record.report).header)


@every_version
def test_the_page_shows_runs_of_every_version(written):
    page = make_page(load([WRITTEN / written]))
    assert ("No verdict: its records hold no report" in page) == (written in WITHOUT_REPORTS)


def test_there_are_files_of_every_schema_and_of_this_version():
    assert {f"schema_{i}" for i in range(1, SCHEMA_VERSION + 1)} <= set(VERSIONS)
    assert version("lightning-linf") in VERSIONS, "run tests/support/files_of_this_version.py"
