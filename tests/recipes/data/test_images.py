import os
import pickle
import struct

import numpy as np
import pytest
import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
from support.image_files import write_cifar10, write_fashion_mnist, write_idx

from data import images
from settings import RecipeError


def test_cifar10_batches_are_read_in_order_and_shape(tmp_path):
    folder = write_cifar10(tmp_path / "cifar")
    (train, labels), (held_out, _) = images.load(f"cifar10:{folder}")
    assert (train.shape, held_out.shape) == ((15, 3, 32, 32), (3, 3, 32, 32))
    second = pickle.loads((folder / "data_batch_2").read_bytes())
    assert labels[3:6].tolist() == second[b"labels"]
    # a row holds all red, then all green, then all blue pixels, row by row
    assert train[3, 1, 2, 5] == second[b"data"][0, 1024 + 2 * 32 + 5]


def test_cifar10_as_python_2_wrote_it_is_read(tmp_path):
    folder = write_cifar10(tmp_path / "cifar")
    # numpy's arrays under protocol 2 of old name their module otherwise
    content = (folder / "test_batch").read_bytes()
    old = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != content
    (folder / "test_batch").write_bytes(old)
    images.load(f"cifar10:{folder}")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_files_are_read_packed_and_plain(tmp_path, suffix):
    folder = write_fashion_mnist(tmp_path / "fashion", suffix)
    (train, labels), (held_out, _) = images.load(f"fashion-mnist:{folder}")
    draw = np.random.default_rng(0)
    assert (train[:, 0] == draw.integers(256, size=(6, 28, 28))).all()
    assert labels.tolist() == draw.integers(10, size=6).tolist()
    assert held_out.shape == (3, 1, 28, 28)


def test_the_digits_are_there_and_every_fifth_is_held_out():
    (train, labels), (held_out, _) = images.load("digits")
    assert (train.shape, held_out.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    assert (train.max(), set(labels.tolist())) == (255, set(range(10)))


class Evil:
    def __reduce__(self):
        return os.system, ("false",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FileNotFoundError"),
        (b"", "EOFError"),
        (b"GIF89a", "UnpicklingError"),
        (pickle.dumps({b"labels": [1]}), "KeyError"),
        (pickle.dumps([1]), "TypeError"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [1, 2]}), "float64 of shape"),
        (pickle.dumps({b"data": np.zeros((2, 3), np.uint8), b"labels": [1, 2]}), "shape \\(2, 3"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [1, 2]}), "shape \\(1"),
        (pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}), "10 to 10"),
        (pickle.dumps({b"data": Evil(), b"labels": [1]}), "has no place in it"),
    ],
)
def test_malformed_cifar10_is_refused(tmp_path, content, message):
    folder = write_cifar10(tmp_path / "cifar")
    (folder / "data_batch_3").unlink()
    if content is not None:
        (folder / "data_batch_3").write_bytes(content)
    with pytest.raises(RecipeError, match=f"data: expected .*data_batch_3', got .*{message}"):
        images.load(f"cifar10:{folder}")


def idx(*header, content=bytes(6 * 28 * 28)):
    return struct.pack(f">HBB{len(header) - 3}I", *header) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "FileNotFoundError"),
        (b"", "error: unpack_from"),
        (idx(1, 8, 3, 6, 28, 28), "header \\(1, 8, 3"),
        (idx(0, 13, 3, 6, 28, 28), "header \\(0, 13, 3"),
        (idx(0, 8, 3, 7, 28, 28), "and 4704 bytes"),
        (idx(0, 8, 3, 5, 28, 28, content=bytes(5 * 28 * 28)), "5\\. Fetch"),
    ],
)
def test_malformed_idx_is_refused(tmp_path, content, message):
    folder = write_fashion_mnist(tmp_path / "fashion")
    file = folder / "train-images-idx3-ubyte"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=f"data: expected .*, got .*{message}"):
        images.load(f"fashion-mnist:{folder}")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda packed: packed[:-3], "EOFError"),
        (lambda packed: packed[:10] + b"\xff" + packed[11:], "error: Error -3 while decompressing"),
    ],
)
def test_a_broken_gz_is_refused(tmp_path, broken, message):
    folder = write_fashion_mnist(tmp_path / "fashion", ".gz")
    file = folder / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(broken(file.read_bytes()))
    with pytest.raises(RecipeError, match=f"t10k-labels-idx1-ubyte', got {message}"):
        images.load(f"fashion-mnist:{folder}")


@pytest.mark.parametrize("data", ["cifar10", "cifar10:nowhere", "mnist:.", "fashion-mnist:", ""])
def test_unknown_data_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="data: expected digits, cifar10:DIR or fashion"):
        images.load(data)


def test_the_address_of_images_follows_their_content(tmp_path):
    folder = write_fashion_mnist(tmp_path / "fashion")
    before = images.content_id(f"fashion-mnist:{folder}")
    packed = write_fashion_mnist(tmp_path / "packed", ".gz")
    assert images.content_id(f"fashion-mnist:{packed}") == before
    write_idx(folder / "t10k-labels-idx1-ubyte", np.array([1, 2, 3]))
    assert images.content_id(f"fashion-mnist:{folder}") != before
