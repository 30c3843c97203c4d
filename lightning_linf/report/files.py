"""Write files so that a failure leaves the old content, and so that only files are replaced."""

import contextlib
import os
import secrets
import shutil
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
}


class OutputError(ValueError):
    """A place where no file can be written, or where one would replace something else."""


def destination(path: Path, expected: str) -> Path:
    """Follow links to the file that writing ``path`` would make or replace.

    Args:
        path: As the user gave it; it need not exist.
        expected: How messages begin, such as "GeometryReport.save: expected `path`".

    Raises:
        OutputError: If a folder, a device, a pipe or a socket is there, or what may not be written.
    """
    target = Path(os.path.realpath(path))
    got = f"got {str(path)!r}"
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        kind = None
    except OSError as error:  # links in a circle, or a file where a folder should be
        raise OutputError(f"{expected} to be a file, {got}: {error.strerror}.") from error
    if kind == stat.S_IFDIR:
        raise OutputError(
            f"{expected} to be a file, got the folder {str(path)!r}. Add a name, such as report."
        )
    if kind is not None and (kind != stat.S_IFREG or not target.is_file()):  # or deleted, but open
        raise OutputError(
            f"{expected} to be a file, got the {_KINDS.get(kind, 'link')} {str(path)!r}, which a "
            "new file would replace. Write a file, and copy it there."
        )
    if kind is not None and not os.access(target, os.W_OK):
        raise OutputError(
            f"{expected} to be a file that you may write, {got}, which is write-protected. Choose "
            "another name."
        )
    # The new file is written beside the old one, whose name it then takes.
    if target.parent.is_dir() and not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{expected} in a folder that you may write, {got}. Choose another one.")
    return target


def write_atomically(path: Path, content: str | bytes, expected: str) -> None:
    """Write so that, whatever fails, the file holds the old content or all of the new.

    If ``path`` is a link, its target is written. A file that is replaced hands its permissions on
    to the new one. Text is written as UTF-8. Missing folders are made.

    Raises:
        OutputError: As :func:`destination` does.
    """
    target = destination(path, expected)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: only within one file system is a rename atomic.
    temporary = target.with_name(f".lightning-linf.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            if target.exists():
                _keep_owner_and_mode(target, temporary)
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _keep_owner_and_mode(old: Path, new: Path) -> None:
    status = old.stat()
    if hasattr(os, "chown"):
        with contextlib.suppress(PermissionError):  # only root may give a file away
            os.chown(new, status.st_uid, status.st_gid)
    shutil.copymode(old, new)
