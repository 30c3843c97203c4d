"""Find the folders of runs."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning_linf import record


def find(folders: Iterable[Path]) -> dict[str, Path]:
    """Find the folders of runs in or below others.

    Returns:
        By name: the path below the folder that all runs share. For ``logs/a/version_0`` and
        ``logs/b/version_0`` these are "a/version_0" and "b/version_0".
    """
    found = sorted(
        folder
        for folder in _walk(folders)
        if (folder / record.FILE_NAME).is_file() or event_files(folder)
    )
    base = Path(os.path.commonpath(found)) if found else Path()
    if base in found:  # it is a run itself, and its name would be "."
        base = base.parent
    names = (os.fsencode(os.path.relpath(folder, base)) for folder in found)
    # A file system allows names that are not text; a page can show only text.
    return dict(
        zip((name.decode("utf-8", "backslashreplace") for name in names), found, strict=True)
    )


def event_files(folder: Path) -> list[Path]:
    """List the files in a folder that TensorBoard would read, in the order of training."""
    return sorted(
        path
        for path in folder.iterdir()
        if "tfevents" in path.name and path.suffix != ".profile-empty" and path.is_file()
    )


def _walk(folders: Iterable[Path]) -> Iterator[Path]:
    """Give folders and all below them, each once; links are followed, as TensorBoard does."""
    seen: set[str] = set()
    pending = deque(folder.resolve() for folder in folders)
    while pending:
        for folder, names, _ in os.walk(pending.popleft()):
            real = os.path.realpath(folder)
            if real in seen:
                names.clear()
                continue
            seen.add(real)
            yield Path(folder)
            # Links come last, so that a folder that is also reached directly gets its own name.
            pending.extend(path for name in names if (path := Path(folder, name)).is_symlink())
