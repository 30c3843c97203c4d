"""One step of each optimizer on a transformer's parameters, with weight decay 0.1."""

from collections.abc import Callable

import torch
from optimizers import Transformer, steps

TRANSFORMERS = {"tiny": (64, 1, 100), "cpu": (256, 4, 19_456), "cuda": (768, 12, 50_257)}
STEPS = ("AdamW, fused", "BlockwiseAdam, row", "BlockwiseAdam, head", "Adam-mini")


def make(name: str, device: torch.device, size: str) -> Callable[[], object]:
    """Make a step of an optimizer."""
    torch.manual_seed(0)
    module = Transformer(*TRANSFORMERS[size]).to(device)
    for p in module.parameters():
        p.grad = 1e-3 * torch.randn_like(p)
    return steps(module, 0.1)[name]
