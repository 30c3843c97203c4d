"""The sdist and the wheel: what they hold, what they say, and that a second build is the same.

`make release` builds them, and names their folder in DISTRIBUTIONS.
"""

import email
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import lightning_linf

ROOT = Path(lightning_linf.__file__).parents[1]
pytestmark = pytest.mark.skipif(
    "DISTRIBUTIONS" not in os.environ, reason="run by make release, which builds what it looks at"
)
BESIDE_THE_PACKAGE = {
    *("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md"),
    *("pyproject.toml", "setup.py"),
}
LICENCES = ["LICENSE", "lightning_linf/panels/static/vendor/LICENSE.txt"]


def module_at(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_below(folder):
    """Contents by path, without what Python caches; links to folders are not followed."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path.read_bytes() for name, path in names.items() if "__pycache__" not in name}


def contents_of_wheel(path):
    with zipfile.ZipFile(path) as wheel:
        return {name: wheel.read(name) for name in wheel.namelist()}


def copy_of_the_tree(folder):
    for package in ("lightning_linf", "callbacks"):
        for name, content in files_below(ROOT / package).items():
            path = folder / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    for name in BESIDE_THE_PACKAGE:
        shutil.copyfile(ROOT / name, folder / name)
    return folder


def build(tree, out, epoch):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", str(epoch))
        module_at(ROOT / ".ci" / "distributions.py").main(tree, out)


def only_file(pattern):
    (path,) = (ROOT / os.environ["DISTRIBUTIONS"]).glob(pattern)
    return path


@pytest.fixture(scope="module")
def sdist():
    return only_file("*.tar.gz")


@pytest.fixture(scope="module")
def wheel():
    return only_file("*.whl")


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in contents_of_wheel(wheel) if name.endswith("/METADATA"))
    return email.message_from_bytes(contents_of_wheel(wheel)[name])


def test_the_wheel_holds_the_package_its_licences_and_nothing_else(wheel):
    contents = contents_of_wheel(wheel)
    package = {name: data for name, data in contents.items() if ".dist-info/" not in name}
    callbacks = files_below(ROOT / "callbacks")
    assert package == {
        **{
            f"lightning_linf/{name}": data
            for name, data in files_below(ROOT / "lightning_linf").items()
        },
        **{f"lightning_linf/callbacks/{name}": data for name, data in callbacks.items()},
    }
    beside = {name.partition(".dist-info/")[2] for name in contents.keys() - package.keys()}
    assert beside == {
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"),
        *(f"licenses/{name}" for name in LICENCES),
    }


def test_the_package_holds_code_types_and_panels_only():
    others = [name for name in files_below(ROOT / "lightning_linf") if not name.endswith(".py")]
    assert [name for name in others if not name.startswith("panels/static/")] == ["py.typed"]
    assert {Path(name).suffix for name in others} == {".css", ".js", ".json", ".txt", ".typed"}


def test_the_sdist_holds_what_the_wheel_is_built_from_and_nothing_else(sdist):
    with tarfile.open(sdist) as archive:
        entries = archive.getmembers()
    inside = {entry.name.partition("/")[2] for entry in entries if entry.isfile()}
    assert {name for name in inside if "egg-info/" not in name} == {
        *BESIDE_THE_PACKAGE,
        *("PKG-INFO", "setup.cfg"),
        *(f"lightning_linf/{name}" for name in files_below(ROOT / "lightning_linf")),
        *(f"callbacks/{name}" for name in files_below(ROOT / "callbacks")),
    }
    assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in entries} == {
        (0, 0, "", "")
    }


def test_a_second_build_elsewhere_has_the_same_bytes(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        epoch = int(archive.getmembers()[0].mtime)
    tree = copy_of_the_tree(tmp_path / "tree")
    for path in tree.rglob("*"):
        path.chmod(0o700)  # as under another umask
    build(tree, tmp_path / "dist", epoch)
    assert (tmp_path / "dist" / sdist.name).read_bytes() == sdist.read_bytes()
    assert (tmp_path / "dist" / wheel.name).read_bytes() == wheel.read_bytes()


def test_the_wheel_of_the_tree_is_that_of_the_sdist(wheel, tmp_path):
    tree = copy_of_the_tree(tmp_path / "tree")
    command = ["-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, tree]
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    (path,) = tmp_path.glob("*.whl")
    assert contents_of_wheel(path) == contents_of_wheel(wheel)


def test_metadata_say_licence_versions_and_where_the_plugin_is(metadata, wheel):
    assert metadata["License-Expression"] == "MIT"
    assert metadata.get_all("License-File") == LICENCES
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert metadata["Version"] == project["version"]
    contents = contents_of_wheel(wheel)
    (entry_points,) = (data for name, data in contents.items() if name.endswith("entry_points.txt"))
    assert (
        b"[tensorboard_plugins]\ngeometry = lightning_linf.tensorboard.plugin.loader:"
        in entry_points
    )
    assert b"[console_scripts]\nlightning-linf = lightning_linf.cli:main" in entry_points


def test_the_classifiers_exist_and_name_no_python_that_is_refused(metadata):
    from trove_classifiers import classifiers, deprecated_classifiers

    named = set(metadata.get_all("Classifier"))
    assert named <= classifiers
    assert not named & deprecated_classifiers.keys()
    minors = [int(match[1]) for match in map(re.compile(r".*:: 3\.(\d+)$").match, named) if match]
    assert f">=3.{min(minors)}" == metadata["Requires-Python"]


def test_the_page_of_an_index_has_no_link_that_leads_nowhere(metadata):
    page = metadata.get_payload()
    assert page.startswith("# lightning_linf")
    targets = re.findall(r"\]\(([^)]+)\)", page)
    assert targets
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []


def test_links_of_the_readme_lead_into_the_repository_where_there_is_an_address():
    for_an_index = module_at(ROOT / "setup.py").for_an_index
    text = "[a](docs/a.md#b) ![p](docs/p.png) [w](https://w.org/x) [h](#h)"
    assert for_an_index(text, "https://h.org/r", "1.2.0") == (
        "[a](https://h.org/r/blob/v1.2.0/docs/a.md#b) ![p](https://h.org/r/raw/v1.2.0/docs/p.png) "
        "[w](https://w.org/x) [h](#h)"
    )
    assert for_an_index(text, None, "1.2.0") == "a  [w](https://w.org/x) [h](#h)"
