"""Says in one line what a recipe lacks. Each recipe imports it first, before an import fails."""

import sys
from importlib.util import find_spec
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
# What the extra `recipes` installs, and the recipes import.
_MODULES = (
    *("lightning_linf", "lightning", "torch", "jsonargparse", "matplotlib", "tensorboard"),
    *("transformers", "tokenizers", "sklearn", "scipy"),
)

if sys.version_info < (3, 11):  # noqa: UP036  # who has installed nothing is not told by pip
    sys.exit(
        f"error: expected Python >= 3.11, got {sys.version.split()[0]}. "
        "Make an environment with a newer one, as by: python3.11 -m venv .venv"
    )
if missing := [name for name in _MODULES if find_spec(name) is None]:
    sys.exit(
        f"error: expected the packages of the recipes, got no {', '.join(missing)}. "
        f"Run: {sys.executable} -m pip install -e '{_ROOT}[recipes]'"
    )
