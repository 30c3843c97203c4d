"""What pyproject.toml cannot say: the README as the page of a package index shows it.

There, paths of this repository lead nowhere. Where ``[project.urls]`` has a "Source", they become
links into the repository at the tag of this version; without one, links become plain text and
pictures go.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
# ![text](target) or [text](target), where the target is no address and no heading of this page
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def for_an_index(readme: str, source: str | None, version: str) -> str:
    """Make links and pictures of Markdown absolute, or leave them out without a ``source``."""

    def replace(match: re.Match[str]) -> str:
        picture, text, target = match.groups()
        if source is None:
            return "" if picture else text
        kind = "raw" if picture else "blob"
        return f"{picture}[{text}]({source}/{kind}/v{version}/{target})"

    return _LINK.sub(replace, readme)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    setup(
        long_description=for_an_index(
            (ROOT / "README.md").read_text(encoding="utf-8"),
            project["urls"].get("Source"),
            project["version"],
        ),
        long_description_content_type="text/markdown",
    )
