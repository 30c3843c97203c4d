"""The examples of docs/without_a_trainer.md run as they stand, and a report shows them."""

import re
import warnings
from pathlib import Path

import pytest
from support.records import read

from lightning_linf.html.page import make_page
from lightning_linf.report import GeometryReport
from lightning_linf.runs.load import load

PAGE = Path(__file__).parents[2] / "docs" / "without_a_trainer.md"
NEEDS = {"plain": "torch", "fabric": "lightning", "accelerate": "accelerate"}
pytestmark = [
    pytest.mark.skipif(not PAGE.is_file(), reason="tests the source tree"),
    pytest.mark.filterwarnings("ignore:.*torch.backends.cuda.matmul.allow_tf32:UserWarning"),
]


def examples():
    """Give the code of each example by the folder that it writes."""
    if not PAGE.is_file():
        return {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return {re.search(r'"runs/(\w+)"', block)[1]: block for block in blocks}


@pytest.mark.parametrize("name", ["plain", "fabric", "accelerate"])
def test_loop_of_the_documentation_trains_measures_and_is_shown(name, tmp_path, monkeypatch):
    pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    exec(compile(examples()[name], name, "exec"), {})
    records, notes = read(tmp_path / "runs" / name / "geometry.jsonl")
    assert notes == []
    observed = [one.step for one in records if "heterogeneity" in one.tag]
    measured = [one for one in records if "smoothness" in one.tag]
    assert observed == list(range(20))
    assert [one.step for one in measured] == [9, 19]
    report = GeometryReport.from_dict({**measured[-1].report})
    assert report.num_params == 161
    assert report.settings["stage"] == "training"
    # Without the names of wrappers.
    assert measured[-1].tensors == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert measured[-1].scalars["geometry/probe_overhead"] > 0
    (run,) = load([tmp_path])
    assert run.report.verdict in make_page([run])


@pytest.mark.slow
def test_training_of_transformers_is_recorded_by_the_callback(tmp_path, monkeypatch):
    pytest.importorskip("accelerate")
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of transformers and accelerate
        exec(compile(examples()["transformers"], "transformers", "exec"), {})
    records, notes = read(tmp_path / "runs" / "transformers" / "geometry" / "geometry.jsonl")
    assert notes == []
    assert [one.step for one in records if "heterogeneity" in one.tag] == list(range(20))
    measured = [one for one in records if "smoothness" in one.tag]
    assert [one.step for one in measured] == [9, 19]
    assert measured[0].report["settings"]["num_batches"] == 4
    assert measured[0].report["noise"] is not None
    (run,) = load([tmp_path])
    assert run.report is not None
