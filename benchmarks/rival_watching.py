"""One training step of a GPT-2 whose gradient is looked at, as each package does it, every step."""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path

import torch
from gpt2_network import make_gpt2, token_loss, zipf_tokens
from rival_products import SHAPES
from torch import Tensor, nn

Action = Callable[[], object]


class Training:
    """A network, its batch and AdamW, the same in every process."""

    def __init__(self, device: torch.device, size: str) -> None:
        self.module = make_gpt2(SHAPES[size], device)
        self.tokens = zipf_tokens(SHAPES[size], device)
        self.optimizer = torch.optim.AdamW(self.module.parameters(), lr=1e-6, fused=True)

    def step(self, look: Callable[[Tensor], object]) -> None:
        """Take one, and look at it between backward and the step, given the loss."""
        self.optimizer.zero_grad()
        loss = token_loss(self.module, self.tokens)
        loss.backward()
        look(loss)
        self.optimizer.step()


def plain(training: Training) -> Action:
    """Nothing is looked at."""
    return lambda: training.step(lambda loss: None)


def norms(training: Training) -> Action:
    """The 2-norm of each gradient, read out: what Composer's `OptimizerMonitor` takes of them."""

    def look(loss: Tensor) -> list[float]:
        found = [torch.linalg.vector_norm(p.grad) for p in training.module.parameters()]
        return torch.stack(found).tolist()

    return lambda: training.step(look)


def ours(training: Training) -> Action:
    """`GeometryRecorder.observe`, which writes a record of all tensors and an event."""
    from lightning_linf import GeometryRecorder

    recorder, numbers = GeometryRecorder(Path(tempfile.mkdtemp())), count()
    return lambda: training.step(
        lambda loss: recorder.observe(training.module, step=next(numbers), loss=loss)
    )


def wandb_watch(training: Training) -> Action:
    """`wandb.watch` of gradients, which writes a histogram of each; offline."""
    import wandb

    run = wandb.init(
        mode="offline", dir=tempfile.mkdtemp(), settings=wandb.Settings(console="off", silent=True)
    )
    module: nn.Module = training.module
    run.watch(module, log="gradients", log_freq=1)
    return lambda: (training.step(lambda loss: None), run.log({}))


WATCHING: dict[str, Callable[[Training], Action]] = {
    "step alone": plain,
    "2-norms": norms,
    "lightning_linf": ours,
    "wandb.watch": wandb_watch,
}


def make(name: str, device: torch.device, size: str) -> Action:
    """Make a watched training step."""
    return WATCHING[name](Training(device, size))
