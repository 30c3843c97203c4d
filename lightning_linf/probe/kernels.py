"""Kernels that can be differentiated twice, while probing only."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_linf.probe.errors import ProbeError

_NO_SECOND_DERIVATIVE = ("torch::autograd::Error", "torch::autograd::NotImplemented")


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


def check_second_derivatives(gradients: Sequence[Tensor]) -> None:
    """Refuse gradients whose graph holds an operation that cannot be differentiated again.

    Autograd raises only where such a node lies between gradient and parameter. That of a
    ``once_differentiable`` function leads nowhere: it would be left out without a word.

    Raises:
        ProbeError: Naming the kind of node and what it feeds.
    """
    pending = [(g.grad_fn, "the gradient") for g in gradients if g.grad_fn is not None]
    seen = set()
    while pending:
        node, user = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.name() in _NO_SECOND_DERIVATIVE:
            raise ProbeError(
                "probe: an operation in the loss has no second derivative (a fused kernel or a "
                f"once_differentiable function, below {user} in the graph of the gradient). Use a "
                "version in plain PyTorch for the probe, e.g. by defining probe_loss(batch)."
            )
        pending.extend((f, node.name()) for f, _ in node.next_functions if f is not None)
