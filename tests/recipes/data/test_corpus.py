import sys
import types
from pathlib import Path

import numpy as np
import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file

from data import corpus
from settings import RecipeError


def read_corpus(folder):
    """Read the documents of a corpus back, as two lists of text."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    splits = []
    for split in ("train", "validation"):
        tokens = np.fromfile(folder / f"{split}.bin", dtype=np.uint16)
        ends = np.flatnonzero(tokens == corpus.END_OF_TEXT_ID)
        splits.append([tokenizer.decode(part) for part in np.split(tokens, ends + 1)[:-1]])
        assert ends[-1] == len(tokens) - 1
    return splits


def build(data, cache_dir, vocab_size=300, val_fraction=0.2):
    folder = corpus.cache_folder(str(data), str(cache_dir), vocab_size, val_fraction)
    corpus.build(str(data), folder, vocab_size, val_fraction)
    return folder


def test_every_document_is_on_exactly_one_side(texts, tmp_path):
    train, validation = read_corpus(build(texts, tmp_path))
    assert not set(train) & set(validation)
    assert sorted(train + validation) == sorted(file.read_text() for file in texts.iterdir())
    assert [text[:6] for text in validation] == ["only01", "only06", "only11"]  # 2nd of each five


def test_the_corpus_repeats_and_its_address_follows_the_content(texts, tmp_path):
    first, second = build(texts, tmp_path / "a"), build(texts, tmp_path / "b")
    assert first.name == second.name
    for name in ("train.bin", "validation.bin", "tokenizer.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()

    copy = tmp_path / "copy"
    copy.mkdir()
    for file in texts.iterdir():
        (copy / file.name).write_text(file.read_text())
    assert corpus.cache_folder(str(copy), str(tmp_path), 300, 0.2).name == first.name
    (copy / "00.txt").write_text("other")
    assert corpus.cache_folder(str(copy), str(tmp_path), 300, 0.2).name != first.name
    assert corpus.cache_folder(str(texts), str(tmp_path), 301, 0.2).name != first.name


@pytest.mark.parametrize(
    ("val_fraction", "length", "expected"),
    [
        (0.05, 2, 0.05),  # one document of about 600 bytes: 64 sequences of 2 tokens of 4 bytes
        (0.2, 1000, 0.2),  # more than a tenth is taken as it is
        (0.05, 100, 0.1),  # and a tenth is the most it is raised to
    ],
)
def test_of_short_text_more_is_held_out(texts, val_fraction, length, expected):
    assert corpus.held_out_fraction(str(texts), val_fraction, length) == expected
    assert corpus.held_out_fraction("hf:name", val_fraction, length) == val_fraction


def test_as_much_is_held_out_as_64_sequences_take(tmp_path):
    for number in range(100):
        (tmp_path / f"{number:03d}").write_bytes(b"x" * 256 * (number != 0))  # one is empty
    held_out = corpus.held_out_fraction(str(tmp_path), 1e-3, 4)  # 1,024 of 25,344 bytes
    assert sum(corpus.is_validation(index, held_out) for index in range(99)) == 5
    assert held_out == 1 / 24
    one = tmp_path / "one"
    one.write_bytes(b"x" * 20_000)
    assert corpus.held_out_fraction(str(one), 1e-3, 4) == 1024 / 20_000
    assert corpus.held_out_fraction(str(one), 0.06, 4) == 0.06


def test_an_interrupted_build_leaves_nothing(texts, tmp_path, monkeypatch):
    def interrupted(texts, vocab_size):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(corpus, "train_tokenizer", interrupted)
        with pytest.raises(KeyboardInterrupt):
            build(texts, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert build(texts, tmp_path).is_dir()


def test_a_build_that_another_process_finished_first_is_kept(texts, tmp_path, monkeypatch):
    finished = build(texts, tmp_path)
    with monkeypatch.context() as patch:  # as if it was not there yet at the first look
        looks = iter([False, True])
        patch.setattr(Path, "exists", lambda self: next(looks))
        corpus.build(str(texts), finished, 300, 0.2)
    assert [folder.name for folder in tmp_path.iterdir()] == [finished.name]


def test_a_file_that_is_alone_is_cut_in_two(tmp_path):
    file = tmp_path / "only.txt"
    file.write_text("abcde " * 100)
    train, validation = read_corpus(build(file, tmp_path))
    assert [len(train[0]), len(validation[0])] == [480, 120]
    assert train[0] + validation[0] == file.read_text()


def test_binary_and_empty_files_are_left_out_and_bad_bytes_replaced(tmp_path):
    folder = tmp_path / "data"
    (folder / ".hidden").mkdir(parents=True)
    (folder / ".hidden" / "a.txt").write_text("hidden")
    (folder / "binary").write_bytes(b"a\0b")
    (folder / "empty").write_bytes(b"")
    (folder / "latin").write_bytes(b"caf\xe9 <|endoftext|>")
    (folder / "text").write_text("plain")
    train, validation = read_corpus(build(folder, tmp_path))
    assert train == ["caf\ufffd <|endoftext|>"]  # the mark in it is text, not an end
    assert validation == ["plain"]


def test_globs_and_home_are_expanded(texts, monkeypatch):
    monkeypatch.setenv("HOME", str(texts.parent))
    named = corpus.find_files(f"~/{texts.name}/0*.txt")
    assert [name for name, _ in named] == [f"{number:02d}.txt" for number in range(10)]


def test_the_standard_library_comes_without_its_tests():
    names = [name for name, _ in corpus.find_files("stdlib")]
    assert "json/decoder.py" in names
    assert names == sorted(names)
    parts = {part for name in names for part in Path(name).parts}
    assert not parts & {"test", "tests", "idle_test", "site-packages", "__pycache__"}


class HubDataset:
    column_names = ("text",)

    def iter(self, batch_size):
        yield {"text": ["first document", "second document"]}
        yield {"text": ["third document"]}


def test_hub_documents_fall_back_to_the_converted_copy(monkeypatch):
    calls = []

    def load_dataset(path, **choice):
        calls.append((path, choice))
        if "revision" not in choice:
            raise RuntimeError("Dataset scripts are no longer supported, but found it.py")
        return HubDataset()

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    documents = list(corpus.read_documents("hf:someone/text:en", 0.1))
    assert documents == ["first document", "second document", "third document"]
    assert calls[-1] == (
        "someone/text",
        {"name": "en", "split": "train", "revision": "refs/convert/parquet"},
    )


@pytest.mark.parametrize(
    ("load_dataset", "message"),
    [
        (None, r"pip install 'lightning-linf\[hub\]'"),
        (lambda path, **choice: 1 / 0, "got 'ZeroDivisionError: division by zero'. Check the name"),
        (lambda path, **choice: types.SimpleNamespace(column_names=["a"]), "have a column 'text'"),
    ],
)
def test_hub_refusals(monkeypatch, load_dataset, message):
    module = types.SimpleNamespace(load_dataset=load_dataset) if load_dataset else None
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(RecipeError, match=message):
        list(corpus.read_documents("hf:name", 0.1))
