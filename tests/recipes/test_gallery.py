import dataclasses
import json
import platform
import re
import shutil
import socket
from pathlib import Path

import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file

import gallery
import gpt2
from exhibits import entries, pages, words
from exhibits.measured import Measured, UntrueError, claim
from exhibits.watch import is_kept, watch
from lightning_linf.record import Reader

pytestmark = pytest.mark.skipif(
    not pages.RUNS.is_dir(), reason="docs/ is not beside tests/: it is not in the wheel"
)
A_PATH = re.compile(r"(?<![\w.])/(home|root|tmp|Users|usr|var|opt|mnt|work)/|[A-Z]:\\\\")
CLOCK = re.compile(r'"(geometry/\w*_(seconds|overhead)|seconds|date|wall_time)": ("[^"]*"|[^,}]*)')
MACHINE = "machine-on-which-pages-are-made"


@pytest.fixture(scope="module")
def made():
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((socket, "gethostname"), (platform, "node")):
            patch.setattr(module, name, lambda: MACHINE)
        return {name: pages.page(name) for name in pages.PAGES}


def data(text):
    """Give what is embedded in a page."""
    (content,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    return json.loads(content)


def test_the_committed_page_is_that_of_the_committed_records():
    assert words.index() == words.INDEX.read_text(encoding="utf-8")


def test_every_entry_has_a_page_a_picture_and_words(made):
    text = words.INDEX.read_text(encoding="utf-8")
    assert not set("{}") & set(text)  # every figure is filled in
    for name in made:
        (picture,) = re.findall(rf"!\[[^]]+\]\(([^)]*gallery-{name}\.png)\)", text)
        assert (pages.GALLERY / picture).stat().st_size < 150_000


def test_pages_are_small_and_name_neither_place_nor_machine(made):
    for name, text in made.items():
        assert len(text.encode()) < 500_000, name
        words_alone = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
        for content in (json.dumps(data(text)), words_alone):
            assert not A_PATH.search(content), (name, A_PATH.search(content))
            assert MACHINE not in content


def test_figures_in_words_are_those_that_the_pages_hold(made):
    for name, text in made.items():
        curves = data(text)["scalars"]
        for run in pages.PAGES[name]:
            measured = Measured(pages.RUNS / run)
            for tag in ("edge", "lambda_max", "density"):
                shown = curves[run]["curves"][f"geometry/{tag}"]
                values = dict(zip(shown["steps"], shown["values"], strict=True))
                for step, value in measured.finite(tag).items():
                    assert values[step] == pytest.approx(value, rel=1e-5)


def test_the_records_are_those_of_the_present_settings():
    for training in entries.TRAININGS:
        assert is_kept(training, pages.RUNS / training.config.name), training.config.name


def test_a_sentence_that_the_records_do_not_bear_out_is_not_written(tmp_path, monkeypatch):
    with pytest.raises(UntrueError, match="expected records that bear this out"):
        claim("Two is more than three.", 2 > 3)
    runs = tmp_path / "runs"
    shutil.copytree(pages.RUNS, runs)
    path = runs / "diverging" / "geometry.jsonl"
    path.write_text(re.sub(r'"geometry/edge": [\d.e+-]+', '"geometry/edge": 0.5', path.read_text()))
    monkeypatch.setattr(pages, "RUNS", runs)
    with pytest.raises(UntrueError):
        words.index()


def test_finished_runs_are_kept_and_unknown_ones_refused(monkeypatch, tmp_path, capsys):
    trained = []
    monkeypatch.setattr("exhibits.watch.watch", lambda training, folder: trained.append(folder))
    gallery.train([])
    assert trained == []
    gallery.train(["vit"])
    assert trained == [pages.RUNS / "vit"]
    with pytest.raises(SystemExit, match=r"again: expected some of gpt2, .*, got none such"):
        gallery.train(["none such"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # Lightning's own
def test_a_tiny_run_becomes_a_page_and_repeats(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, name="tiny", max_steps=2, smoothness_every=1, lr=1e-3)
    training = entries.Training(config, gpt2.prepare)
    other = entries.Training(dataclasses.replace(config, seed=1), gpt2.prepare)
    for folder in ("first", "again"):
        path = tmp_path / folder / "tiny"
        assert not is_kept(training, path)
        watch(training, path)
        assert is_kept(training, path)
        assert not is_kept(other, path)
    first, again = (
        CLOCK.sub("", Path(tmp_path, folder, "tiny", "geometry.jsonl").read_text())
        for folder in ("first", "again")
    )
    assert first == again
    with (tmp_path / "first" / "tiny" / "geometry.jsonl").open("rb") as file:
        tags = {record.tag for _, record in Reader(file)}
    assert len(tags) == 5  # of five monitors
    monkeypatch.setattr(pages, "RUNS", tmp_path / "first")
    monkeypatch.setattr(pages, "PAGES", {"tiny": ("tiny",)})
    (page,) = pages.write_pages(tmp_path)
    shown = data(page.read_text(encoding="utf-8"))
    curves = shown["scalars"]["tiny"]["curves"]
    assert curves["geometry/edge"]["steps"] == [1, 2]
    assert curves["train_loss"]["steps"] == [1, 2]
    assert shown["reports"]["tiny"]["step"] == 2
