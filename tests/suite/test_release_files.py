"""What stands in several places for a release is the same in each."""

import re
import tomllib
from pathlib import Path

import pytest

import lightning_linf

ROOT = Path(lightning_linf.__file__).parents[1]
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").is_file(),
    reason="tests the source tree, and an installed package is under test",
)


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def project():
    return tomllib.loads(text("pyproject.toml"))["project"]


def test_the_citation_is_of_this_version_and_licence():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load(text("CITATION.cff"))
    assert citation["version"] == project()["version"]
    assert citation["license"] == project()["license"]
    assert citation["references"][0]["url"] == project()["urls"]["Paper"]


def test_the_changelog_begins_with_what_is_unreleased_and_this_version():
    headings = re.findall(r"^## (\S+)", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[:2] == ["Unreleased", project()["version"]]


def test_the_page_of_versions_lists_each_python_of_the_classifiers():
    named = re.findall(r":: (3\.\d+)$", "\n".join(project()["classifiers"]), re.MULTILINE)
    tried = re.findall(r"^\| (3\.\d+)\.\d+ \|", text("docs/releases.md"), re.MULTILINE)
    assert set(named) == set(tried)
