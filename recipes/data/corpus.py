"""Text for the language-model recipes: documents -> byte-level BPE -> one array of tokens.

Where text comes from (``data``):

- ``stdlib``: the sources of Python's own standard library, without its tests. Needs no network.
- a file, a folder (all its files but hidden ones) or a glob of text files. Bytes that are not UTF-8
  become U+FFFD. Empty files, and files with a NUL byte, which are taken for binary, are left out.
- ``hf:NAME`` or ``hf:NAME:CONFIGURATION``: a data set of the Hugging Face Hub, of which the column
  ``text`` of the split ``train`` is read.

The tokenizer is always trained here, on the first 200 million characters of the training documents.
That needs no download and allows any vocabulary size, but losses per token compare only between
runs with the same tokenizer.

Documents are sorted by name, and of every ``k = round(1 / val_fraction)`` the second is held out
for validation, so no document is on both sides. (A single file is cut in two.) Of short text more
is held out (`held_out_fraction`). Tokenizer and tokens are cached under a hash of the settings and
of the text, or of the Hub's name for it.
"""

import glob
import hashlib
import os
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from settings import RecipeError

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 0  # special tokens come first
MIN_VOCAB_SIZE = 257  # every byte, and the end of text
_TOKENIZER_CHARS = 200_000_000  # more would cost memory and hardly change the merges
_CHUNK_CHARS = 4_000_000  # text encoded at a time, on all cores
_FOREIGN = {"site-packages", "dist-packages", "__pycache__"}
_TESTS = {"test", "tests", "idle_test"}
_VAL_SEQUENCES = 64  # to hold out at least: with fewer a validation loss says little
_BYTES_PER_TOKEN = 4  # of the text; with a large vocabulary a token is rarely longer
_MOST_HELD_OUT = 0.1  # to which a smaller share is raised at the most
_FORMAT = "1"  # part of the cache's address: raise it when what is stored changes


def find_files(data: str) -> list[tuple[str, Path]]:
    """List the files behind ``data`` as (name relative to their common folder, path), sorted."""
    root = Path(data).expanduser()
    if data == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        paths = [
            path
            for path in root.rglob("*.py")
            if not (_FOREIGN | _TESTS) & set(path.relative_to(root).parts)
        ]
    elif root.is_dir():
        paths = [
            path
            for path in root.rglob("*")
            if not any(part in _FOREIGN or part[0] == "." for part in path.relative_to(root).parts)
        ]
    elif root.is_file():
        root, paths = root.parent, [root]
    else:
        paths = [Path(match) for match in glob.glob(str(root), recursive=True)]
        root = Path(os.path.commonpath([path.parent for path in paths] or [root]))
    files = sorted((path.relative_to(root).as_posix(), path) for path in paths if path.is_file())
    if not files:
        raise RecipeError(
            "data: expected 'stdlib', 'hf:NAME', a text file, a folder or a glob of text files, "
            f"got {data!r}. Check the path, or leave --data out to train on Python's own sources."
        )
    return files


def read_documents(data: str, val_fraction: float) -> Iterator[str]:
    """Yield the documents of ``data``, always in the same order."""
    if data.startswith("hf:"):
        yield from _hub_documents(data.removeprefix("hf:"))
        return
    files = find_files(data)
    for _, path in files:
        content = path.read_bytes()
        if not content or b"\0" in content:
            continue
        text = content.decode("utf-8", errors="replace")
        if len(files) > 1:
            yield text
        else:
            cut = round(len(text) * (1 - val_fraction))
            yield from (text[:cut], text[cut:])


def is_validation(index: int, val_fraction: float) -> bool:
    """Tell whether the document at ``index`` is held out: the second of k, so that 2 are enough."""
    return index % max(2, round(1 / val_fraction)) == 1


def held_out_fraction(data: str, val_fraction: float, sequence_length: int) -> float:
    """Raise ``val_fraction`` until about 64 sequences are held out, to a tenth at the most.

    The size of the files decides. Text of the Hub, of which it is not known, is taken for long.
    """
    if data.startswith("hf:") or val_fraction >= _MOST_HELD_OUT:
        return val_fraction
    sizes = [size for _, path in find_files(data) if (size := path.stat().st_size)]
    needed = _BYTES_PER_TOKEN * _VAL_SEQUENCES * sequence_length
    if len(sizes) == 1:
        return max(val_fraction, min(_MOST_HELD_OUT, needed / sizes[0]))
    if sum(sizes[1 :: round(1 / val_fraction)]) >= needed:  # as is_validation counts
        return val_fraction
    # From their share of the text on: an earlier k may owe all of it to a single long document.
    for k in range(sum(sizes) // needed, round(1 / _MOST_HELD_OUT), -1):
        if sum(sizes[1::k]) >= needed:
            return 1 / k
    return _MOST_HELD_OUT


def cache_folder(data: str, cache_dir: str, vocab_size: int, val_fraction: float) -> Path:
    """Name the folder of the tokens by a hash of all that they depend on: settings and text."""
    digest = hashlib.sha256(f"{_FORMAT} {vocab_size} {val_fraction}".encode())
    if data.startswith("hf:"):
        digest.update(data.encode())
    else:
        for name, path in find_files(data):
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            digest.update(f"\n{name}\0{content}".encode())
    return Path(cache_dir).expanduser() / f"corpus-{digest.hexdigest()[:16]}"


def build(data: str, folder: Path, vocab_size: int, val_fraction: float) -> None:
    """Train the tokenizer and encode all documents into ``folder``, unless it is there.

    All files are written into a folder of another name, which is renamed at the end. So an
    interrupted build leaves nothing that a later one would take for complete.
    """
    if folder.exists():
        return
    print(f"Once only: training a tokenizer on {data} and encoding it, into {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-part-") as temporary:
        part = Path(temporary) / "corpus"
        part.mkdir()
        tokenizer = train_tokenizer(_training_text(data, val_fraction), vocab_size)
        tokenizer.save(str(part / "tokenizer.json"))
        dtype = token_dtype(vocab_size)
        with (
            open(part / "train.bin", "wb") as train,
            open(part / "validation.bin", "wb") as held_out,
        ):
            index = 0
            for texts in _chunks(read_documents(data, val_fraction)):
                for encoding in tokenizer.encode_batch_fast(texts):
                    tokens = np.asarray([*encoding.ids, END_OF_TEXT_ID], dtype=dtype)
                    tokens.tofile(held_out if is_validation(index, val_fraction) else train)
                    index += 1
        try:
            os.replace(part, folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster, with the same content
                raise


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train GPT-2's kind of tokenizer: pairs of bytes are merged, so it can encode any text."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.encode_special_tokens = True  # an end-of-text mark inside a document is only text
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def token_dtype(vocab_size: int) -> type[np.uint16] | type[np.uint32]:
    """Choose the smallest integers that hold every token."""
    return np.uint16 if vocab_size <= 2**16 else np.uint32


def _training_text(data: str, val_fraction: float) -> Iterator[str]:
    left = _TOKENIZER_CHARS
    for index, text in enumerate(read_documents(data, val_fraction)):
        if left <= 0:
            return
        if not is_validation(index, val_fraction):
            yield text
            left -= len(text)


def _chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    chunk: list[str] = []
    num_chars = 0
    for text in texts:
        chunk.append(text)
        num_chars += len(text)
        if num_chars >= _CHUNK_CHARS:
            yield chunk
            chunk, num_chars = [], 0
    if chunk:
        yield chunk


def _hub_documents(spec: str) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise RecipeError(
            f"data: expected the library `datasets` for 'hf:{spec}', got none. "
            "Run: pip install 'lightning-linf[hub]'"
        ) from error
    name, _, configuration = spec.partition(":")
    choice = {"name": configuration or None, "split": "train"}
    try:
        try:
            dataset = load_dataset(name, **choice)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            # The Hub keeps a converted copy of a data set that comes as a loading script.
            dataset = load_dataset(name, **choice, revision="refs/convert/parquet")
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise RecipeError(
            f"data: expected 'hf:{spec}' to name a data set with a train split, got {reason!r}. "
            "Check the name and the network, or give text of your own with --data PATH."
        ) from error
    if "text" not in dataset.column_names:
        raise RecipeError(
            f"data: expected 'hf:{spec}' to have a column 'text', got {dataset.column_names}. "
            "Choose another data set, or write its text to files and give --data FOLDER."
        )
    for rows in dataset.iter(batch_size=1000):
        yield from rows["text"]
