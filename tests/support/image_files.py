"""Files of images, as CIFAR-10 and Fashion-MNIST have them."""

import gzip
import pickle
import struct

import numpy as np


def write_cifar10(folder, num_images=3):
    draw = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        pixels = draw.integers(256, size=(num_images, 3072), dtype=np.uint8)
        labels = draw.integers(10, size=num_images).tolist()
        content = {b"data": pixels, b"labels": labels, b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def write_idx(path, values):
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_fashion_mnist(folder, suffix=""):
    draw = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for prefix, number in (("train", 6), ("t10k", 3)):
        pixels, labels = draw.integers(256, size=(number, 28, 28)), draw.integers(10, size=number)
        write_idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", pixels)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return folder
