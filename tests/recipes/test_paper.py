import dataclasses
import json
import shlex
from pathlib import Path

import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
import torch

import gpt2
import paper
import resnet
from comparison import compare, variants


def test_the_page_is_written_from_the_records(comparison, tmp_path, monkeypatch):
    options = compare.Options(seeds=1)
    chosen = [dataclasses.replace(variants.SGD, factors=(1.0,))]
    compare.main(comparison, gpt2.prepare, chosen, options)
    folder = tmp_path / "results"
    folder.mkdir()
    found = Path(comparison.runs_dir, comparison.name, "comparison.json")
    (folder / "gpt2.json").write_text(
        json.dumps({**json.loads(found.read_text()), "minutes": 1.25})
    )
    monkeypatch.setattr(paper, "FOLDER", folder)
    page = "\n".join(paper.page())
    assert f"    python recipes/{paper.GPT2.command}\n" in page
    assert "### Batches of 4, 3 steps" in page
    assert "| sgd | global, l2 | **0.01: " in page
    assert "The command took 1.2 minutes, runs kept from" in page
    assert f"torch {torch.__version__}" in page
    assert "![](results/gpt2.png)" in page
    assert "2 runs that did not diverge: " in page
    assert page.count("Not run.") == 2
    assert page.count("Not run: only `make paper ARGS=--long` does.") == 2
    assert "Not run: `make paper` found no CUDA device." in page


def test_the_commands_of_the_page_are_right(monkeypatch, capsys):
    for study in paper.STUDIES[1:]:
        calls = []
        monkeypatch.setattr(compare, "main", lambda *choices, calls=calls: calls.append(choices))
        recipe, *args = shlex.split(study.command)
        {"gpt2.py": gpt2, "resnet.py": resnet}[recipe].run(args)
        ((config, _, _, options, _),) = calls
        assert options.seeds >= 2
        names = [f"{config.name}-batch{size}" for size in options.batch_sizes] or [config.name]
        assert names == list(study.results.values())
