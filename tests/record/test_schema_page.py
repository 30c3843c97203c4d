"""docs/releases.md describes records and reports as they are written and read."""

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import lightning_linf
from lightning_linf.record import SCHEMA_VERSION, LogHistogram, Record
from lightning_linf.report import BlockSmoothness, NoiseReport, SpectralSmoothness
from lightning_linf.report.measurement import Measurement

PAGE = Path(lightning_linf.__file__).parents[1] / "docs" / "releases.md"
pytestmark = pytest.mark.skipif(
    not PAGE.is_file(), reason="tests the source tree, and an installed package is under test"
)
RECORD = Record(
    step=9,
    tag="geometry/heterogeneity_per_tensor",
    scalars={"geometry/density": 0.5},
    tensors=["0.weight"],
    columns={"density": [0.25]},
    whole={"density": 0.5},
    histogram=LogHistogram([-1.0, 0.0], [3]),
    report={"loss": 1.0},
    restart=1,
    own_steps_from=1,
    wall_time=1798761600.125,
)


def section(title):
    return PAGE.read_text(encoding="utf-8").partition(f"## {title}")[2].partition("\n## ")[0]


def keys_of_the_table(text):
    """The first cells of a table's rows, of which one may name several keys."""
    cells = re.findall(r"^\| (`[^|]*`) \|", text, re.MULTILINE)
    return [key for cell in cells for key in re.findall(r"`(\w+)`", cell)]


def test_the_page_names_the_schema_that_is_written():
    assert section("The record").startswith(f": schema {SCHEMA_VERSION}\n")


def test_the_page_lists_every_key_of_a_record():
    assert {field.name for field in fields(Record)} <= {*json.loads(RECORD.to_line())}
    assert keys_of_the_table(section("The record")) == list(json.loads(RECORD.to_line()))


def test_a_record_needs_the_keys_that_the_page_says_are_always_there():
    always = re.findall(r"^\| `(\w+)` \| yes \|", section("The record"), re.MULTILINE)
    written = json.loads(RECORD.to_line())
    for key in written:
        rest = json.dumps({name: value for name, value in written.items() if name != key})
        if key in always and key != "schema":
            with pytest.raises(ValueError, match=key):
                Record.from_line(rest)
        else:
            Record.from_line(rest)
    plain = Record(step=0, tag="", scalars={}, tensors=[], columns={})
    assert list(json.loads(plain.to_line())) == always


def test_the_example_of_the_page_is_a_record():
    (line,) = re.findall(r"```json\n(.*)\n```", section("The record"))
    assert Record.from_line(line).to_line() == line + "\n"


def test_the_page_lists_every_key_of_a_report_in_any_order():
    text = section("The report")
    measured = {field.name for field in fields(Measurement)}
    assert set(keys_of_the_table(text)) == {"schema", *measured}
    written = json.loads(written_report())
    computed = text.partition("Made from these")[2]
    assert set(re.findall(r"`(\w+)`", computed)) == {
        *(written.keys() - measured - {"schema"}),
        *("lower", "upper"),
    }


def written_report():
    version = Path(__file__).parent / "written" / "0.1.0"
    return (version / "report.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("part", [BlockSmoothness, NoiseReport, SpectralSmoothness])
def test_the_page_names_every_key_of_a_part_of_a_report(part):
    named = set(re.findall(r"`(\w+)`", section("The report")))
    assert {field.name for field in fields(part)} <= named
