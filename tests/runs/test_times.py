"""When a run was measured: from records and event files to the axis of a report."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from support.chromium import READY, chromium, needs_chromium
from support.short_run import IGNORED_WARNINGS, train_into

from lightning_linf import record
from lightning_linf.cli import main
from lightning_linf.html.page import make_page
from lightning_linf.record import Record
from lightning_linf.runs.load import load

pytestmark = [pytest.mark.filterwarnings(line) for line in IGNORED_WARNINGS]
EARLIER = Path(__file__).parents[1] / "record" / "written"


def measured(step, wall_time=None):
    scalars = {"geometry/density": 0.5, "geometry/gini": 0.25}
    return Record(step, "geometry/a", scalars, ["w"], {"density": [0.5]}, wall_time=wall_time)


def curves_of(folder):
    page = make_page(load([folder]))
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    (run,) = data["scalars"].values()
    return run["curves"]


def test_a_report_has_the_seconds_since_the_first_record(tmp_path):
    for step, time in ((1, 1000.0), (3, 1002.5), (4, 1100.25)):
        record.append(tmp_path / record.FILE_NAME, measured(step, time))
    curves = curves_of(tmp_path)
    assert [curve["seconds"] for curve in curves.values()] == [[0.0, 2.5, 100.2]] * 2


def test_a_curve_of_which_a_time_is_unknown_has_none(tmp_path):
    record.append(tmp_path / record.FILE_NAME, measured(1))
    record.append(tmp_path / record.FILE_NAME, measured(2, 1000.0))
    assert not any("seconds" in curve for curve in curves_of(tmp_path).values())


def test_a_time_that_is_no_number_is_unknown_and_costs_nothing_else(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    from support.geometry_tab import Plugin
    from torch.utils.tensorboard import SummaryWriter

    line = measured(1, 1000.0).to_line().replace("1000.0", '"Infinity"')
    (tmp_path / record.FILE_NAME).write_text(line)
    (curve, _) = curves_of(tmp_path).values()
    assert curve["values"] == [0.5]
    assert "seconds" not in curve
    for number, time in enumerate((1000.0, math.inf, math.nan)):
        writer = SummaryWriter(str(tmp_path / f"events{number}"))
        writer.add_scalar("geometry/density", 0.5, 1, walltime=time)
        writer.close()
    plugin = Plugin(tmp_path)
    assert plugin.request("/runs")[0] == 200
    for number in range(3):
        status, answer = plugin.request("/scalars", run=f"events{number}")
        assert status == 200
        assert ("seconds" in answer["curves"]["geometry/density"]) == (number == 0)


@pytest.mark.parametrize("version", ["schema_1", "schema_2"])
def test_a_report_of_earlier_records_has_no_times(tmp_path, version):
    shutil.copy(EARLIER / version / record.FILE_NAME, tmp_path)
    curves = curves_of(tmp_path)
    assert curves
    assert not any("seconds" in curve for curve in curves.values())


def test_monitors_write_when_they_measured_and_event_files_tell_the_same(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    train_into(tmp_path, "run")
    of_records = curves_of(tmp_path)
    (tmp_path / "run" / record.FILE_NAME).unlink()
    of_events = curves_of(tmp_path)
    assert {"train_loss", "geometry/density"} <= of_records.keys()
    for tag, curve in of_records.items():
        assert curve["seconds"] == sorted(curve["seconds"])
        assert curve["seconds"] == pytest.approx(of_events[tag]["seconds"], abs=2)


@pytest.mark.slow
@needs_chromium
def test_a_report_is_drawn_over_the_time_where_its_records_have_times(tmp_path):
    pytest.importorskip("tensorboard", reason="needs lightning-linf[tensorboard]")
    train_into(tmp_path / "runs", "run")
    assert main(["report", str(tmp_path / "runs"), "-o", str(tmp_path / "report.html")]) == 0
    with chromium(tmp_path) as page:
        page.open((tmp_path / "report.html").as_uri())
        page.wait(READY)
        page.run("document.querySelector('[name=x-axis][value=time]').click()")
        page.wait(READY)
        for panel in ("verdict", "loss", "fan"):
            plot = f"document.querySelector('#{panel} .body').plot"
            assert page.run(f"{plot}.axes[0].label") == "time since the run's start"
            assert page.run(f"{plot}.data[0].length") >= 2
        assert page.complaints == []
