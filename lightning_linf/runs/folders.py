"""Find the folders of runs."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from lightning_linf import record


def find(folders: Iterable[Path]) -> dict[str, Path]:
    """Give the folders of runs in or below others by what tells them apart."""
    found = sorted(
        folder
        for folder in _walk(folders)
        if (folder / record.FILE_NAME).is_file() or event_files(folder)
    )
    base = Path(os.path.commonpath(found)) if found else Path()
    if base in found:  # which needs a name, too
        base = base.parent
    names = (os.fsencode(os.path.relpath(folder, base)) for folder in found)
    # Not all bytes of a file system are text, and a page is.
    return dict(
        zip((name.decode("utf-8", "backslashreplace") for name in names), found, strict=True)
    )


def event_files(folder: Path) -> list[Path]:
    """List TensorBoard's files in a folder, by its own rule, in the order of training."""
    return sorted(
        path
        for path in folder.iterdir()
        if "tfevents" in path.name and path.suffix != ".profile-empty" and path.is_file()
    )


def _walk(folders: Iterable[Path]) -> Iterator[Path]:
    """Go through folders, once through each, and through links as TensorBoard does."""
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
            # Later, so that what also lies here goes by its own name.
            pending.extend(path for name in names if (path := Path(folder, name)).is_symlink())
