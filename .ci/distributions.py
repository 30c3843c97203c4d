"""Build the sdist, and from it the wheel, into dist/: the same bytes from the same commit.

    python .ci/distributions.py

All times in both are that of the commit, or SOURCE_DATE_EPOCH. The sdist names no owner. Both are
built by the setuptools that is installed here, which constraints.txt pins.
"""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(tree: Path, out: Path) -> None:
    """Build from ``tree`` into ``out``."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH") or _git(tree, "log", "-1", "--format=%ct")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": epoch}
    subprocess.run([*build, "--sdist", str(tree)], check=True, env=environment)
    (sdist,) = out.glob("*.tar.gz")
    sdist.write_bytes(normal(sdist.read_bytes(), int(epoch)))
    with tempfile.TemporaryDirectory() as unpacked:
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        (source,) = Path(unpacked).iterdir()
        subprocess.run([*build, "--wheel", str(source)], check=True, env=environment)


def normal(archive: bytes, epoch: int) -> bytes:
    """Repack a .tar.gz with sorted names, one time, no owner and plain permissions."""
    plain = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as old,
        tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for entry in sorted(old.getmembers(), key=lambda entry: entry.name):
            kept = tarfile.TarInfo(entry.name)
            kept.type, kept.size, kept.linkname = entry.type, entry.size, entry.linkname
            kept.mtime, kept.mode = epoch, 0o755 if entry.isdir() else 0o644
            new.addfile(kept, old.extractfile(entry) if entry.isfile() else None)
    return gzip.compress(plain.getvalue(), mtime=epoch)


def _git(tree: Path, *command: str) -> str:
    return subprocess.check_output(["git", "-C", str(tree), *command], text=True).strip()


if __name__ == "__main__":
    main(ROOT, ROOT / "dist")
