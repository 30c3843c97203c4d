"""The examples of docs/without_a_trainer.md run as they stand, and a report shows them."""

from types import SimpleNamespace

import pytest
from support.documents import ROOT
from support.python_blocks import run_blocks
from support.records import read

from lightning_linf.html.page import make_page
from lightning_linf.report import GeometryReport
from lightning_linf.runs.load import load

pytestmark = pytest.mark.slow
FOLDERS = {
    "plain": "runs/plain",
    "fabric": "runs/fabric",
    "accelerate": "runs/accelerate",
    "transformers": "runs/transformers/geometry",
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The folder in which its blocks ran, and the names that they left."""
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        names = run_blocks(ROOT / "docs" / "without_a_trainer.md", folder, patch)
    return SimpleNamespace(folder=folder, names=names)


@pytest.mark.parametrize("name", FOLDERS)
def test_every_step_is_observed_and_every_tenth_measured(name, page):
    records, notes = read(page.folder / FOLDERS[name] / "geometry.jsonl")
    assert notes == []
    observed = [one.step for one in records if "heterogeneity" in one.tag]
    measured = [one for one in records if "smoothness" in one.tag]
    assert observed == list(range(20))
    assert [one.step for one in measured] == [9, 19]
    assert measured[0].report["settings"]["num_batches"] == 4
    assert measured[0].report["noise"] is not None


@pytest.mark.parametrize("name", ["plain", "fabric", "accelerate"])
def test_record_of_a_loop_is_that_of_the_bare_module(name, page):
    records, _ = read(page.folder / FOLDERS[name] / "geometry.jsonl")
    last = [one for one in records if "smoothness" in one.tag][-1]
    report = GeometryReport.from_dict({**last.report})
    assert report.num_params == 161
    assert report.settings["stage"] == "training"
    assert last.tensors == ["0.weight", "0.bias", "2.weight", "2.bias"]  # no names of wrappers
    assert last.scalars["geometry/probe_overhead"] > 0


@pytest.mark.parametrize("name", FOLDERS)
def test_a_report_shows_the_run(name, page):
    (run,) = load([page.folder / FOLDERS[name]])
    assert run.report.verdict in make_page([run])
