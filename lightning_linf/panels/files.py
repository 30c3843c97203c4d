"""Where the JavaScript and style files of the panels are."""

from pathlib import Path

STATIC = Path(__file__).parent / "static"
