"""The data of the tasks, all of it without a network; each is made once a process."""

import re
from collections import Counter
from functools import cache
from itertools import islice

import torch
from sklearn.datasets import load_breast_cancer, load_digits, make_friedman1
from torch import Tensor

from data.corpus import read_documents

NUM_CHARACTERS = 97  # printable ASCII, the end of a line, and all others
NUM_WORDS = 512
_NUM_DOCUMENTS = 150
_OTHER = 0
NUM_ROWS, NUM_COLUMNS = 300, 200  # of the matrix that is factorized


@cache
def text() -> str:
    """Read documents of Python's standard library."""
    return "\n".join(islice(read_documents("stdlib", 0.1), _NUM_DOCUMENTS))


@cache
def characters() -> Tensor:
    """Number the characters of the text."""
    known = {chr(code): code - 30 for code in range(32, 127)} | {"\n": 1}
    return torch.tensor([known.get(character, _OTHER) for character in text()])


@cache
def words() -> Tensor:
    """Number words and punctuation marks by how common they are; the rare ones share a number."""
    found = re.findall(r"\w+|[^\w\s]", text())
    common = Counter(found).most_common(NUM_WORDS - 1)
    known = {word: number for number, (word, _) in enumerate(common, start=1)}
    return torch.tensor([known.get(word, _OTHER) for word in found])


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Give scikit-learn's handwritten digits, (1797, 1, 8, 8) in [0, 1], and their classes."""
    found = load_digits()
    images = torch.as_tensor(found.images, dtype=torch.float32)[:, None] / 16
    return images, torch.as_tensor(found.target)


@cache
def tumours() -> tuple[Tensor, Tensor]:
    """Give scikit-learn's breast cancer table, (569, 30) standardized, and the two classes."""
    found = load_breast_cancer()
    table = torch.as_tensor(found.data)
    return ((table - table.mean(0)) / table.std(0)).float(), torch.as_tensor(found.target)


@cache
def friedman() -> tuple[Tensor, Tensor]:
    """Make Friedman's first regression problem: ten inputs, of which five matter."""
    x, y = make_friedman1(n_samples=2000, noise=0.5, random_state=0)
    target = torch.as_tensor(y)
    return torch.as_tensor(x).float(), ((target - target.mean()) / target.std()).float()


@cache
def waves() -> tuple[Tensor, Tensor]:
    """Sample a function of the plane with slow and fast waves, at the points of a grid."""
    line = torch.linspace(-1, 1, 64)
    x, y = (axis.flatten() for axis in torch.meshgrid(line, line, indexing="ij"))
    value = torch.sin(3 * x) * torch.cos(2 * y) + 0.5 * torch.sin(9 * x + 4 * y)
    return torch.stack([x, y], dim=1), value + 0.25 * torch.sin(20 * x * y)


@cache
def matrix() -> Tensor:
    """Make a matrix of rank 5 with noise."""
    draw = torch.Generator().manual_seed(0)
    left = torch.randn(NUM_ROWS, 5, generator=draw)
    right = torch.randn(5, NUM_COLUMNS, generator=draw)
    return left @ right / 5**0.5 + 0.3 * torch.randn(NUM_ROWS, NUM_COLUMNS, generator=draw)
