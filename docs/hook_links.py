"""Links to files that the site does not have, such as ../recipes/gpt2.py: a hook of the site.

They work where the repository is browsed. On the site they lead to the repository if pyproject.toml
has its address, ``Source`` in ``[project.urls]``, and are the file's name otherwise.
"""

import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?:[\w.-]+/)*[\w.-]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> None:
    """Take the address, and link to it below each page.

    The theme's own ``repo_url`` is not set: from its pages, browsers ask the host for numbers.
    """
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    source = project.get("urls", {}).get("Source")
    if source is not None:
        config.extra["source"] = source.rstrip("/")
        config.extra["social"] = [{"icon": "material/git", "link": source, "name": "Source"}]


def on_page_markdown(
    markdown: str, *, page: Page, config: MkDocsConfig, files: Files, **_: Any
) -> str:
    """Rewrite such links, outside of fenced code."""

    def rewritten(match: re.Match[str]) -> str:
        folder = posixpath.dirname(page.file.src_uri)
        path = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        file = files.get_file_from_path(posixpath.relpath(path, "docs"))
        is_here = file is not None and file.inclusion.is_included()
        if is_here or not (_ROOT / path).exists():
            return match[0]  # of the latter mkdocs complains
        if "source" in config.extra:
            return f"[{match[1]}]({config.extra['source']}/blob/main/{path}{match[3] or ''})"
        is_named = posixpath.basename(path) in match[1]
        return match[1] if is_named else f"{match[1]} (`{path}`)"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(rewritten, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(rewritten, markdown[end:])])
