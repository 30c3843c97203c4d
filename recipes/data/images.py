"""Labelled images, as a pair of arrays for training and one for validation.

Where images come from (``data``):

- ``digits``: scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, which come with it. Every
  fifth is held out.
- ``cifar10:DIR``: the "python version" of CIFAR-10: data_batch_1 to 5 and test_batch.
- ``fashion-mnist:DIR``: the idx files of Fashion-MNIST or MNIST: train-images-idx3-ubyte,
  train-labels-idx1-ubyte, and the same with t10k for train; each plain or packed, with .gz.
"""

import gzip
import hashlib
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from settings import RecipeError, refuse

Bytes = npt.NDArray[np.uint8]
Labelled = tuple[Bytes, npt.NDArray[np.int64]]  # images (n, channels, height, width), labels (n,)
NUM_CLASSES = 10  # of each of these data sets
_SIDE = 32  # pixels of CIFAR-10
_IDX_BYTES = 0x08  # type code of unsigned bytes


def load(data: str) -> tuple[Labelled, Labelled]:
    """Read training and validation images."""
    kind, _, folder = data.partition(":")
    path = Path(folder).expanduser()
    if data == "digits":
        return _digits()
    if kind in ("cifar10", "fashion-mnist") and folder and path.is_dir():
        return _cifar10(path) if kind == "cifar10" else _fashion_mnist(path)
    refuse(
        "data",
        "digits, cifar10:DIR or fashion-mnist:DIR with a folder that is there",
        data,
        "Check the path, or leave --data out to train on scikit-learn's digits.",
    )


def content_id(data: str) -> str:
    """Name images and labels by their content."""
    digest = hashlib.sha256()
    for images, labels in load(data):
        digest.update(f"{images.shape}".encode() + images.tobytes() + labels.tobytes())
    return digest.hexdigest()[:16]


def _digits() -> tuple[Labelled, Labelled]:
    found = load_digits()
    images = (found.images * (255 / 16)).round().astype(np.uint8)[:, None]  # of 17 levels, 0 to 16
    labels = found.target.astype(np.int64)
    is_validation = np.arange(len(labels)) % 5 == 1
    train = images[~is_validation], labels[~is_validation]
    return train, (images[is_validation], labels[is_validation])


def _cifar10(folder: Path) -> tuple[Labelled, Labelled]:
    batches = [_cifar10_batch(folder / f"data_batch_{i}") for i in range(1, 6)]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return (images, labels), _cifar10_batch(folder / "test_batch")


def _cifar10_batch(path: Path) -> Labelled:
    """Read a pickled dictionary of bytes: rows of 3 x 32 x 32 values, and a list of labels."""
    expected = "a python batch of CIFAR-10, with b'data' (n, 3072) and as many b'labels'"
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="bytes").load()
        pixels, labels = np.asarray(content[b"data"]), np.asarray(content[b"labels"], np.int64)
    except (OSError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, expected, error) from error
    is_right = pixels.dtype == np.uint8 and pixels.shape == (len(labels), 3 * _SIDE**2)
    if not is_right:
        raise _unreadable(path, expected, f"{pixels.dtype} of shape {pixels.shape}")
    _check_labels(labels, path)
    return pixels.reshape(-1, 3, _SIDE, _SIDE), labels


class _PlainUnpickler(pickle.Unpickler):
    """Load numpy arrays and plain types, and nothing that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in ("_reconstruct", "ndarray", "dtype"):
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # bytes of an array, in protocol 2
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in it")


def _fashion_mnist(folder: Path) -> tuple[Labelled, Labelled]:
    train, held_out = (_labelled_idx(folder, prefix) for prefix in ("train", "t10k"))
    return train, held_out


def _labelled_idx(folder: Path, prefix: str) -> Labelled:
    path = folder / f"{prefix}-images-idx3-ubyte"
    images = _idx(path, 3)[:, None]
    labels = _idx(folder / f"{prefix}-labels-idx1-ubyte", 1).astype(np.int64)
    if len(images) != len(labels):
        raise _unreadable(path, f"as many images as labels, {len(labels)}", str(len(images)))
    _check_labels(labels, folder / f"{prefix}-labels-idx1-ubyte")
    return images, labels


def _idx(path: Path, num_dims: int) -> Bytes:
    """Read an idx file: two zeros, type, number of dimensions, sizes (big-endian), then bytes."""
    packed = path.with_name(f"{path.name}.gz")
    expected = f"an idx file of bytes in {num_dims} dimensions"
    try:
        content = path.read_bytes() if path.is_file() else gzip.decompress(packed.read_bytes())
        header = struct.unpack_from(f">HBB{num_dims}I", content)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise _unreadable(path, expected, error) from error
    (zeros, kind, dims), sizes = header[:3], header[3:]
    start = 4 + 4 * num_dims
    is_right = (zeros, kind, dims) == (0, _IDX_BYTES, num_dims)
    if not is_right or len(content) - start != np.prod(sizes, dtype=np.int64):
        raise _unreadable(path, expected, f"header {header} and {len(content) - start} bytes")
    return np.frombuffer(content, np.uint8, offset=start).reshape(sizes)


def _check_labels(labels: npt.NDArray[np.int64], path: Path) -> None:
    if len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        got = f"{labels.min()} to {labels.max()}" if len(labels) else "none"
        raise _unreadable(path, "labels from 0 to 9", got)


def _unreadable(path: Path, expected: str, got: object) -> RecipeError:
    what = f"{type(got).__name__}: {got}" if isinstance(got, Exception) else got
    return RecipeError(
        f"data: expected {expected} in {str(path)!r}, got {what}. Fetch the file again, and unpack "
        "the archive that it came in."
    )
