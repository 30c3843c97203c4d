"""The gallery's pages, made of the records in docs/gallery/runs: a hook of the site."""

import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

from exhibits import pages  # found there


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add them, in place of those that `make gallery` may have left there."""
    for name in pages.PAGES:
        address = f"gallery/{name}.html"
        if (old := files.get_file_from_path(address)) is not None:
            files.remove(old)
        files.append(File.generated(config, address, content=pages.page(name)))
    return files
