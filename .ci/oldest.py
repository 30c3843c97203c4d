"""Print, as constraints for pip, the lowest version that pyproject.toml admits of each requirement.

    python .ci/oldest.py torch

Of the requirements named on the command line it is that of constraints.txt instead: some package
indexes lack old builds of torch for the CPU, say.
"""

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
EXTRAS = ("tensorboard", "cli")


def main(kept: set[str]) -> None:
    """Print one line a requirement of the package and of its extras for users."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"]]
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    for requirement in map(Requirement, lines):
        if canonicalize_name(requirement.name) in kept:
            continue
        (lowest,) = (s.version for s in requirement.specifier if s.operator == ">=")
        print(f"{requirement.name}=={lowest}")
        if requirement.name == "lightning":  # installs its twin, without a bound
            print(f"pytorch-lightning=={lowest}")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if canonicalize_name(line.partition("==")[0]) in kept:
            print(line)


if __name__ == "__main__":
    main({canonicalize_name(name) for name in sys.argv[1:]})
