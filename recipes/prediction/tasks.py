"""The tasks, and the half to which each belongs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
    normalize,
)

from prediction import data, networks

Batch = tuple[Tensor, ...]
Loss = Callable[[nn.Module, Batch], Tensor]
Half = Literal["choose", "test"]
_NOISE = 0.3  # of a pixel; its values are in [0, 1]


@dataclass(frozen=True)
class Task:
    """What is trained, without its optimizer.

    Args:
        name: Short name.
        kind: Network and data in a few words.
        half: Whether the task helps to choose the rule, or tests it.
        make: Makes the network.
        loss: The loss of a batch.
        draw: Draws a batch of a given size.
        batch_size: Samples of a step.
        num_steps: Steps of a run.
        lr: Where the sweep of Adam's rates starts.
    """

    name: str
    kind: str
    half: Half
    make: Callable[[], nn.Module]
    loss: Loss
    draw: Callable[[int, Generator], Batch]
    batch_size: int
    num_steps: int
    lr: float

    @property
    def num_params(self) -> int:
        """Parameters of the network."""
        return sum(p.numel() for p in self.make().parameters())


def _next_token(module: nn.Module, batch: Batch) -> Tensor:
    (tokens,) = batch
    return cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def _classes(module: nn.Module, batch: Batch) -> Tensor:
    x, classes = batch
    return cross_entropy(module(x), classes)


def _values(module: nn.Module, batch: Batch) -> Tensor:
    *x, values = batch
    return mse_loss(module(*x).view_as(values), values)


def _pixels(module: nn.Module, batch: Batch) -> Tensor:
    images = batch[0].flatten(1)
    return binary_cross_entropy_with_logits(module(images), images)


def _two_views(module: nn.Module, batch: Batch) -> Tensor:
    """Tell from each other the images of which two noisy views are seen (InfoNCE)."""
    first, second = (normalize(module(view.flatten(1)), dim=1) for view in batch)
    return cross_entropy(first @ second.T / 0.2, torch.arange(len(first)))


def _sequences(tokens: Callable[[], Tensor], length: int) -> Callable[[int, Generator], Batch]:
    def draw(batch_size: int, generator: Generator) -> Batch:
        found = tokens()
        starts = torch.randint(len(found) - length, (batch_size, 1), generator=generator)
        return (found[starts + torch.arange(length + 1)],)

    return draw


def _samples(table: Callable[[], tuple[Tensor, Tensor]]) -> Callable[[int, Generator], Batch]:
    def draw(batch_size: int, generator: Generator) -> Batch:
        x, y = table()
        chosen = torch.randint(len(x), (batch_size,), generator=generator)
        return x[chosen], y[chosen]

    return draw


def _noisy(
    table: Callable[[], tuple[Tensor, Tensor]], noise: float
) -> Callable[[int, Generator], Batch]:
    """Draw samples with noise that is another each time, so that none can be learnt by heart."""

    def draw(batch_size: int, generator: Generator) -> Batch:
        x, y = _samples(table)(batch_size, generator)
        return x + noise * torch.randn(x.shape, generator=generator), y

    return draw


def _views(batch_size: int, generator: Generator) -> Batch:
    """Draw different digits, each with noise twice."""
    images, _ = data.digits()
    chosen = images[torch.randperm(len(images), generator=generator)[:batch_size]]
    noise = _NOISE * torch.randn(2, *chosen.shape, generator=generator)
    return chosen + noise[0], chosen + noise[1]


def _entries(batch_size: int, generator: Generator) -> Batch:
    """Draw entries of the matrix, those of its first rows and columns more often."""
    uniform = torch.rand(2, batch_size, generator=generator).square()
    row = (uniform[0] * data.NUM_ROWS).long()
    column = (uniform[1] * data.NUM_COLUMNS).long()
    return row, column, data.matrix()[row, column]


TASKS = (
    Task(
        "word-llama", "LLaMA-like (RMSNorm, SwiGLU, rotary), words of Python's sources", "choose",
        lambda: networks.LanguageModel(data.NUM_WORDS, 24, 48, 2, llama=True),
        _next_token, _sequences(data.words, 24), 16, 400, 1e-2,
    ),
    Task(
        "vit", "vision transformer, noisy digits", "choose",
        lambda: networks.VisionTransformer(48, 2),
        _classes, _noisy(data.digits, _NOISE), 32, 400, 4e-3,
    ),
    Task(
        "resnet", "ResNet with BatchNorm, noisy digits", "choose",
        lambda: networks.residual_network(12),
        _classes, _noisy(data.digits, _NOISE), 64, 300, 8e-3,
    ),
    Task(
        "tumours", "tanh MLP, noisy table of tumours", "choose",
        lambda: networks.perceptron(30, 64, 64, 2, activation=nn.Tanh),
        _classes, _noisy(data.tumours, 0.5), 64, 400, 4e-3,
    ),
    Task(
        "friedman", "ReLU MLP of five layers, synthetic regression", "choose",
        lambda: networks.perceptron(10, 64, 64, 64, 64, 1, activation=nn.ReLU),
        _values, _samples(data.friedman), 128, 400, 8e-3,
    ),
    Task(
        "autoencoder", "autoencoder with a code of 8, digits", "choose",
        lambda: networks.perceptron(64, 64, 32, 8, 32, 64, 64, activation=nn.GELU),
        _pixels, _samples(data.digits), 128, 400, 1.6e-2,
    ),
    Task(
        "char-gpt", "GPT-2-like (LayerNorm, GELU, positions), characters of Python's sources",
        "test",
        lambda: networks.LanguageModel(data.NUM_CHARACTERS, 32, 48, 2, llama=False),
        _next_token, _sequences(data.characters, 32), 16, 400, 8e-3,
    ),
    Task(
        "mixer", "MLP-mixer, noisy digits", "test",
        lambda: networks.Mixer(48, 2),
        _classes, _noisy(data.digits, _NOISE), 64, 400, 4e-3,
    ),
    Task(
        "char-lstm", "LSTM, characters of Python's sources", "test",
        lambda: networks.RecurrentModel(data.NUM_CHARACTERS, 64),
        _next_token, _sequences(data.characters, 32), 32, 400, 1.6e-2,
    ),
    Task(
        "waves", "GELU MLP of the coordinates, a function of the plane", "test",
        lambda: networks.perceptron(2, 64, 64, 64, 1, activation=nn.GELU),
        _values, _samples(data.waves), 256, 400, 8e-3,
    ),
    Task(
        "factors", "matrix factorization with unequally frequent entries", "test",
        lambda: networks.Factorization(data.NUM_ROWS, data.NUM_COLUMNS, 8),
        _values, _entries, 512, 400, 3e-2,
    ),
    Task(
        "contrast", "ReLU encoder, contrastive loss on two noisy views of digits", "test",
        lambda: networks.perceptron(64, 96, 96, 32, activation=nn.ReLU),
        _two_views, _views, 128, 400, 4e-3,
    ),
)  # fmt: skip


def task(name: str) -> Task:
    """Find a task by its name."""
    return {found.name: found for found in TASKS}[name]
