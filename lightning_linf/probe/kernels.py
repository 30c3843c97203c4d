"""Kernels that can be differentiated twice, while probing only."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def twice_differentiable(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run ``module`` eagerly, without autocast, with kernels that have a double backward.

    Must be open around forward *and* backward: activation checkpointing runs forward again.
    """
    with ExitStack() as stack:
        # Fused attention has no double backward.
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        # Compiled graphs have no double backward either.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        # Second derivatives in bfloat16 are noise; the parameters are float32 or wider here.
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            # cuDNN's recurrent kernels have no double backward, nor a backward in eval mode.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield
