"""Makes the modules of recipes/ importable, as they are for `python recipes/gpt2.py`.

A test file that imports this before them is skipped where recipes/ or a library of theirs is
missing. An installed package has no recipes/, for example.
"""

import sys
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
if not (RECIPES / "gpt2.py").is_file():
    pytest.skip("recipes/ is not beside tests/: they are not in the wheel", allow_module_level=True)
for library in (
    "transformers", "tokenizers", "jsonargparse", "tensorboard", "matplotlib", "sklearn", "scipy",
):  # fmt: skip
    pytest.importorskip(library, reason=f"the recipes need {library}: lightning-linf[recipes]")
if str(RECIPES) not in sys.path:
    sys.path.insert(0, str(RECIPES))
