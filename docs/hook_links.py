"""Links to files that the site does not have, such as ../recipes/gpt2.py: a hook of the site.

They work where the repository is browsed. On the site they lead to the repository, if its address
is known (``repo_url`` in mkdocs.yml), and are the file's name otherwise.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(((?:[\w.-]+/)*[\w.-]+)(#[^)\s]*)?\)")


def on_page_markdown(
    markdown: str, *, page: Page, config: MkDocsConfig, files: Files, **_: Any
) -> str:
    """Rewrite such links, outside of fenced code."""

    def rewritten(match: re.Match[str]) -> str:
        folder = posixpath.dirname(page.file.src_uri)
        path = posixpath.normpath(posixpath.join("docs", folder, match[2]))
        file = files.get_file_from_path(posixpath.relpath(path, "docs"))
        is_here = file is not None and file.inclusion.is_included()
        if is_here or not Path(config.config_file_path).parent.joinpath(path).exists():
            return match[0]  # of the latter mkdocs complains
        if config.repo_url:
            return f"[{match[1]}]({config.repo_url.rstrip('/')}/blob/main/{path}{match[3] or ''})"
        is_named = posixpath.basename(path) in match[1]
        return match[1] if is_named else f"{match[1]} (`{path}`)"

    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(rewritten, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(rewritten, markdown[end:])])
