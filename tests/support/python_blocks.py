"""Run the ```python blocks of a page, as a reader would who types them in one after the other."""

import re
import warnings
from functools import wraps

import pytest
import torch
from lightning.pytorch import Trainer
from support.documents import fences, name_of
from support.readers_names import readers_names

NOT_RUN = re.compile(r"# not run: \S.*\n")
# What blocks import, beside torch and Lightning: packages of extras.
EXTRAS = re.compile(r"^\s*(?:from|import) (accelerate|matplotlib|pandas|transformers)\b", re.M)


def run_blocks(page, folder, monkeypatch):
    """Run those of a page in one namespace, in an empty folder, and give the namespace."""
    torch.manual_seed(0)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Trainer, "__init__", _short(Trainer.__init__))
    names = readers_names(folder)
    for line, code in fences(page, "python"):
        if NOT_RUN.match(code):
            continue
        for package in EXTRAS.findall(code):
            pytest.importorskip(package)
        # Its lines have the numbers that they have on the page, in a traceback.
        compiled = compile("\n" * (line - 1) + code, name_of(page), "exec")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # small data and few steps, of which Lightning warns
            exec(compiled, names)
    return names


def _short(init):
    """Let a Trainer make four steps on the CPU, where a page does not say otherwise."""

    @wraps(init)
    def short_init(self, **options):
        short = {"max_steps": 4, "accelerator": "cpu", "enable_progress_bar": False}
        init(self, **{**short, **options})

    return short_init
