"""The reference has every public name once, and nothing else."""

import re
from importlib import import_module

import pytest
from support.documents import ROOT

import lightning_linf

PACKAGES = (
    *("callbacks", "functional", "metrics", "optim", "partition", "probe", "record", "recorder"),
    *("reparam", "report", "swap"),
)
ALSO = {  # modules whose names are public, too
    "lightning_linf.recorder.transformers": ["GeometryCallback"],
    "lightning_linf.errors": [
        *("ProbeError", "ProbeMemoryError", "RefusedLossError", "RestoreError", "RankLostError")
    ],
}


def public_names():
    """Yield (package, name) of all that the packages export by ``import X as X``."""
    for package in PACKAGES:
        source = (ROOT / "lightning_linf" / package / "__init__.py").read_text(encoding="utf-8")
        for name in re.findall(r"\b(\w+) as \1\b", source):
            yield f"lightning_linf.{package}", name
    for module, names in ALSO.items():
        yield from ((module, name) for name in names)


def listed():
    """Paths that the pages of the reference show."""
    pages = (ROOT / "docs" / "reference").glob("*.md")
    return [path for page in pages for path in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]


def test_reference_has_every_public_name_once():
    pytest.importorskip("transformers")
    paths = listed()
    assert len(paths) == len(set(paths))
    shown = {}
    for path in paths:
        home, _, name = path.rpartition(".")
        shown[name] = getattr(import_module(home), name)
    assert len(shown) == len(paths)
    public = {name: getattr(import_module(home), name) for home, name in public_names()}
    assert shown == public


def test_names_of_the_package_itself_are_among_them():
    assert {*lightning_linf.__all__} <= {name for _, name in public_names()}
