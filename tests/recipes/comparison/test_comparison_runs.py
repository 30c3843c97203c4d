import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.comparisons import PAIR
from support.recipes import RECIPES
from support.small_gpt2 import Prepare

import gpt2
from comparison import compare, runs
from settings import RecipeError


def test_a_budget_ends_between_runs_and_the_next_call_goes_on(comparison, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    first, second = Prepare(), Prepare()

    def prepare(config, callbacks, **options):
        now[0] += 50
        return first(config, callbacks, **options)

    with pytest.raises(RecipeError, match="budget: expected 4 runs within 1 minutes, got 2"):
        compare.main(comparison, prepare, PAIR, compare.Options(budget=1.0))
    compare.main(comparison, second, PAIR)
    assert (len(first.rates), len(second.rates)) == (2, 2)


@pytest.mark.slow
def test_jobs_end_with_the_program_that_started_them(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(f"""
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
sys.path.insert(0, {str(RECIPES)!r})
from comparison import jobs

def note():
    open({str(tmp_path / "pid")!r}, "w").write(str(jobs.os.getpid()))
    time.sleep(3600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, jobs._start_job, (1,)) as pool:
        pool.submit(note).result()
""")
    deadline = time.monotonic() + 600
    with subprocess.Popen([sys.executable, program]) as parent:
        try:
            while not ((tmp_path / "pid").is_file() and (pid := (tmp_path / "pid").read_text())):
                assert parent.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            parent.kill()
    # The state is the first letter after the name; Z waits for the one that adopted it.
    stat = Path(f"/proc/{pid}/stat")
    while stat.is_file() and stat.read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_two_jobs_find_what_one_finds(comparison):
    pair = [dataclasses.replace(variant, factors=(1.0,)) for variant in PAIR]
    alone = compare.main(comparison, gpt2.prepare, pair)
    options = compare.Options(jobs=2)
    config = dataclasses.replace(comparison, name="together")
    together = compare.main(config, gpt2.prepare, pair, options)

    def losses(results):
        return [o.train_loss for row in results[0].sweep.values() for o in row]

    assert losses(together) == pytest.approx(losses(alone), rel=1e-6)


def test_a_run_depends_on_what_its_recipe_imports_and_not_on_what_shows_it(tmp_path, monkeypatch):
    for name in ("resnet.py", "comparison/compare.py", "comparison/tables.py", "data/corpus.py"):
        assert (RECIPES / name).is_file()
    copy = tmp_path / "recipes"
    shutil.copytree(RECIPES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runs, "_RECIPES", copy)
    monkeypatch.setattr(runs, "getfile", lambda _: str(copy / "comparison" / "single_run.py"))

    def code(recipe):
        runs._code.cache_clear()
        return runs._code(str(copy / recipe))

    def changes(recipe, file):
        before = code(recipe)
        with open(copy / file, "a") as source:
            source.write("# changed\n")
        return code(recipe) != before

    for file in ("gpt2.py", "training/train.py", "data/corpus.py", "comparison/own_geometry.py"):
        assert changes("gpt2.py", file), file
    for file in ("resnet.py", "data/images.py", "comparison/compare.py", "comparison/tables.py"):
        assert not changes("gpt2.py", file), file
    assert changes("resnet.py", "data/images.py")
    runs._code.cache_clear()
