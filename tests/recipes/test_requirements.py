"""A recipe says in one line what it lacks, whatever that is."""

import ast
import os
import runpy
import subprocess
import sys

import pytest
from support.recipes import RECIPES

PROGRAMS = ("gallery", "gpt2", "paper", "predict", "quadratic", "resnet", "vit")


def test_every_recipe_looks_for_its_packages_before_it_imports_anything():
    for name in PROGRAMS:
        tree = ast.parse((RECIPES / f"{name}.py").read_text(encoding="utf-8"))
        first = next(node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom))
        assert ast.unparse(first) == "import requirements"
    files = RECIPES.glob("*.py")
    assert {file.stem for file in files if "__main__" in file.read_text()} == {*PROGRAMS}


def test_without_any_package_it_says_which_and_what_to_run():
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-S", str(RECIPES / "gpt2.py")]  # -S: no installed packages
    ended = subprocess.run(command, capture_output=True, text=True, env=outside, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr == (
        "error: expected the packages of the recipes, got no lightning_linf, lightning, torch, "
        "jsonargparse, matplotlib, tensorboard, transformers, tokenizers, sklearn, scipy. "
        f"Run: {sys.executable} -m pip install -e '{RECIPES.parent}[recipes]'\n"
    )


def test_an_old_python_is_refused_before_packages_are(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    monkeypatch.setattr(sys, "version", "3.9.18 (main)")
    with pytest.raises(SystemExit, match=r"^error: expected Python >= 3\.11, got 3\.9\.18\. "):
        runpy.run_path(str(RECIPES / "requirements.py"))
