"""What is written is a file, whole, and replaces nothing but a file."""

import os
import re
import socket
import stat
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.records import read

from lightning_linf import record
from lightning_linf.cli import main
from lightning_linf.record import Record
from lightning_linf.report.files import OutputError, destination, write_atomically
from lightning_linf.runs.run import Run

needs_links = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a POSIX file system")
EXPECTED = "f: expected `path`"


def write(path, content="new"):
    write_atomically(path, content, EXPECTED)


@needs_links
def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "data").mkdir()
    target = tmp_path / "data" / "kept.html"
    for old in (None, "old"):  # a link that leads nowhere yet, too
        link = tmp_path / f"{old}.html"
        link.symlink_to(target)
        assert destination(link, EXPECTED) == target.resolve()
        write(link, f"new {old}")
        assert link.is_symlink()
        assert target.read_text() == f"new {old}"
    assert os.listdir(target.parent) == ["kept.html"]


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX permissions")
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "report.html"
    path.write_text("old")
    path.chmod(mode)
    write(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"
    before = os.umask(0o027)
    try:
        write(tmp_path / "other.html")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "other.html").stat().st_mode) == 0o640


def special(folder, kind):
    """Make something that is no file."""
    path = folder / "special"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))  # a long path is refused
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    return path


@needs_links
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "device"])
def test_what_is_no_file_is_refused_before_work_begins(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.chdir(tmp_path)
    path = special(tmp_path, kind)
    mode = path.stat().st_mode
    message = f"to be a file, got the {kind} {str(path)!r}"
    with pytest.raises(OutputError, match=re.escape(message)):
        write(path)
    commands = [["report", "no-such-run", "-o"]]
    if find_spec("jsonargparse") is not None:
        commands.append(["measure", "no.ckpt", "--model", "no.Model", "--output"])
    for command in commands:
        assert main([*command, str(path)]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {command[0]}: expected --output {message}")
        assert said.count("\n") == 1
    assert path.stat().st_mode == mode
    assert os.listdir(tmp_path) == ["special"]


@needs_links
def test_links_in_a_circle_and_a_deleted_file_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OutputError, match=r"to be a file, got '.*a': "):
        write(tmp_path / "a")
    if sys.platform == "linux":
        with open(tmp_path / "gone", "w") as file:
            os.remove(file.name)
            with pytest.raises(OutputError, match="got the link '/proc/self/fd/"):
                write(Path(f"/proc/self/fd/{file.fileno()}"))
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize(
    ("protected", "message"),
    [("report.html", "which is write-protected"), ("folder", "in a folder that you may write")],
)
def test_what_is_write_protected_is_refused(tmp_path, monkeypatch, protected, message):
    path = tmp_path / "folder" / "report.html"
    write(path, "old")
    # Not by its mode: root may write everything.
    monkeypatch.setattr(os, "access", lambda path, mode: os.path.basename(path) != protected)
    with pytest.raises(OutputError, match=message):
        write(path)
    assert path.read_text() == "old"


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_figures_go_to_a_folder(tmp_path, capsys, kind):
    pytest.importorskip("matplotlib", reason="needs lightning-linf[figures]")
    (tmp_path / "figures").write_text("mine")
    command = ["report", str(tmp_path), "-o", str(tmp_path / "r.html")]
    assert main([*command, f"--{kind}", str(tmp_path / "figures")]) == 2
    assert f"expected --{kind} to be a folder or a new name" in capsys.readouterr().err
    assert (tmp_path / "figures").read_text() == "mine"


@needs_links
def test_figures_go_through_links_and_into_no_pipe(tmp_path):
    pytest.importorskip("matplotlib", reason="needs lightning-linf[figures]")
    from lightning_linf.figures.save import save_figures

    run = Run("run", {"geometry/lambda_max": [(1, 1.0)]})
    folder = tmp_path / "png"
    folder.mkdir()
    (folder / "smoothness.png").symlink_to(tmp_path / "far.png")
    assert save_figures([run], {"png": folder}) == [folder / "smoothness.png"]
    assert (tmp_path / "far.png").read_bytes().startswith(b"\x89PNG")
    (folder / "smoothness.png").unlink()
    os.mkfifo(folder / "smoothness.png")
    with pytest.raises(OutputError, match="report: expected the figure to be a file, got the pipe"):
        save_figures([run], {"png": folder})


def entry(step):
    return Record(step, "geometry/a", {}, ["a"], {"density": [0.5]})


@needs_links
def test_records_go_through_a_link_and_into_no_pipe(tmp_path):
    (tmp_path / "far").mkdir()
    path = tmp_path / record.FILE_NAME
    path.symlink_to(tmp_path / "far" / "records.jsonl")
    for step in (1, 3, 5):
        record.append(path, entry(step))
    (tmp_path / "far" / "records.1.jsonl").symlink_to("nowhere")  # a name that is taken
    kept = record.cut(path, 3)
    assert kept.name == "records.2.jsonl"
    assert [one.step for one in read(kept)[0]] == [3, 5]
    assert [one.step for one in read(path)[0]] == [1]
    assert record.cut(path, 0).name == "records.3.jsonl"
    record.append(path, entry(0))
    assert path.is_symlink()
    assert [one.step for one in read(path)[0]] == [0]
    path.unlink()
    os.mkfifo(path)
    for write_records in (lambda: record.append(path, entry(1)), lambda: record.cut(path, 1)):
        with pytest.raises(OSError, match="expected a file or nothing at"):
            write_records()
