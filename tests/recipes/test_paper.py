import dataclasses
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
    (folder / "gpt2.json").write_text(found.read_text())
    monkeypatch.setattr(paper, "FOLDER", folder)
    page = "\n".join(paper.page())
    assert f"    python recipes/{paper.GPT2.command}\n" in page
    words = " ".join(page.split())
    assert "3 steps of 4 samples, the first 1 of them with a rising rate. Gradients whose" in words
    assert "norm is above 1 are scaled down to it; where all are, SGD is" in words
    assert "mean over seeds 0 to 0; the best in bold." in words
    assert "with seeds 1 to 1 (n = 1)" in words
    assert "| sgd | global, l2 | **0.01: " in page
    assert f"torch {torch.__version__}" in page
    assert "](results/gpt2.png)" in page
    assert "2 runs, 0 minutes of one core with their measurements." in words
    assert page.count("Not run.") == 2
    assert "Not run: `make paper` found no CUDA device." in page


def test_the_committed_page_is_that_of_the_committed_results():
    assert "\n".join(paper.page()) + "\n" == paper.PAGE.read_text()


def test_the_commands_of_the_page_are_right(monkeypatch, capsys):
    for study in paper.STUDIES[1:]:
        calls = []
        monkeypatch.setattr(compare, "main", lambda *choices, calls=calls: calls.append(choices))
        recipe, *args = shlex.split(study.command)
        {"gpt2.py": gpt2, "resnet.py": resnet}[recipe].run(args)
        ((config, _, _, options, _),) = calls
        assert options.seeds >= 3
        assert options.sweep_seeds >= 2
        assert options.rounding >= 1
        names = [f"{config.name}-batch{size}" for size in options.batch_sizes] or [config.name]
        assert names == [study.folder]
