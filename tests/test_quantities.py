"""The list of quantities: unique, written by somebody, and read by all that shows them."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

import lightning_linf
from lightning_linf import callbacks, quantities
from lightning_linf.panels.files import STATIC
from lightning_linf.panels.own_scalars import own_scalars
from lightning_linf.panels.payload import vocabulary
from lightning_linf.quantity import Column, Histogram, PartitionScalar, Scalar
from lightning_linf.tensorboard.layout import custom_scalars

PACKAGE = Path(lightning_linf.__file__).parent
SOURCE_TREE = PACKAGE.parent
SOURCES = [
    *(PACKAGE / "callbacks").glob("*.py"),
    *(PACKAGE / "recorder").glob("*.py"),
    PACKAGE / "report" / "scalars.py",
    PACKAGE / "tensorboard" / "writer.py",
]
CONSTANTS = {
    name: value for name, value in vars(quantities).items() if value in quantities.ALL
}  # by the name of the constant


def names_in(source):
    """Names of quantities in a file: attributes of the module, and what is imported from it."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "quantities":
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module == "lightning_linf.quantities":
            yield from (alias.name for alias in node.names)


def test_names_are_unique_words_and_constants_are_all():
    names = [quantity.name for quantity in quantities.ALL]
    assert len(set(names)) == len(names) == len(CONSTANTS) > 30
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", name) for name in names)


@pytest.mark.parametrize("quantity", quantities.ALL, ids=lambda quantity: quantity.name)
def test_every_quantity_is_described(quantity):
    assert quantity.meaning.endswith(".")
    assert quantity.monitors
    assert not (isinstance(quantity, Column) and not quantity.label)


@pytest.mark.parametrize("constant", CONSTANTS)
def test_every_quantity_is_written_by_a_callback_the_recorder_the_report_or_the_writer(constant):
    assert any(constant in names_in(source) for source in SOURCES)


def test_what_is_imported_or_read_from_the_list_is_in_it():
    for source in SOURCES:
        assert all(hasattr(quantities, name) for name in names_in(source)), source


def test_no_callback_writes_a_tag_or_a_name_of_its_own():
    names = {quantity.name for quantity in quantities.ALL}
    for source in SOURCES:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        words = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not words & {quantities.PREFIX + name for name in names}, source
        keys = [key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys]
        assert not {k.value for k in keys if isinstance(k, ast.Constant)} & names, source


def test_monitors_of_the_list_are_those_of_the_package():
    for monitor in quantities.MONITORS:
        assert getattr(callbacks, monitor.name).record_tag == monitor.record_tag
    assert {m for quantity in quantities.ALL for m in quantity.monitors} == set(quantities.MONITORS)


def test_tags_are_made_of_names():
    assert quantities.GINI.tag == "geometry/gini"
    assert quantities.SECANT.of("row") == "geometry/secant/row"
    assert quantities.of_monitor(quantities.GINI.tag, "") == "geometry/gini"
    assert quantities.of_monitor(quantities.SECANT.of("row"), "fine") == "geometry/fine/secant/row"


def test_a_column_of_a_later_version_goes_by_its_name():
    assert quantities.column("gini") is quantities.GINI
    unknown = quantities.column("largest_entry")
    assert (unknown.label, unknown.unit, unknown.levels) == ("largest entry", "", ())


def test_charts_find_each_scalar_that_names_them_and_no_other():
    tags = {q.name: q.of("row") if isinstance(q, PartitionScalar) else q.tag for q in tagged()}
    layout = custom_scalars(monitor.name for monitor in quantities.MONITORS)["Geometry"]
    for title, (kind, patterns) in layout.items():
        assert kind == "Multiline"
        found = {n for n, tag in tags.items() if any(re.match(p, tag) for p in patterns)}
        assert found == {q.name for q in quantities.ALL if title in q.charts}
    assert set(layout) == {title for quantity in quantities.ALL for title in quantity.charts}


def test_charts_find_the_tags_of_each_of_several_optimizers():
    (chart,) = custom_scalars([quantities.HETEROGENEITY.name])["Geometry"].values()
    assert re.match(chart[1][0], quantities.DENSITY.tag + "/optimizer1")
    assert custom_scalars(["Callback"]) == {"Geometry": {}}


def tagged():
    return [q for q in quantities.ALL if isinstance(q, Scalar | PartitionScalar)]


def test_panels_are_told_of_every_quantity_and_ask_for_no_other():
    told = vocabulary()["quantities"]
    assert told.keys() == {quantity.name for quantity in quantities.ALL}
    words = {
        word
        for file in STATIC.rglob("*.js")
        if "vendor" not in file.parts
        for word in re.findall(r'"([a-z0-9]+(?:_[a-z0-9]+)+)"', file.read_text(encoding="utf-8"))
    }
    assert "advantage_lower" in words
    assert words <= told.keys() | own_scalars([])


@pytest.mark.skipif(
    not (SOURCE_TREE / "pyproject.toml").is_file(),
    reason="tests the source tree, and an installed package is under test",
)
def test_page_of_quantities_is_up_to_date(monkeypatch):
    monkeypatch.syspath_prepend(SOURCE_TREE / "docs" / "scripts")
    listing = import_module("list_quantities")
    written = listing.PAGE.read_text(encoding="utf-8")
    assert listing.page() == written, "run python docs/scripts/list_quantities.py"


def test_only_the_histogram_is_no_number():
    assert [q.name for q in quantities.ALL if isinstance(q, Histogram)] == ["log10_grad"]
