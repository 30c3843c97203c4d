"""Kernels that can be differentiated twice, while probing only."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_linf.functional.full_precision import full_float32_precision
from lightning_linf.probe.errors import ProbeError

_NO_SECOND_DERIVATIVE = ("torch::autograd::Error", "torch::autograd::NotImplemented")


@contextmanager
def twice_differentiable(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Run ``module`` eagerly, without autocast or TF32, with kernels that have a double backward.

    Must be open around forward *and* backward: activation checkpointing runs forward again.
    """
    with ExitStack() as stack:
        stack.enter_context(full_float32_precision())
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


@contextmanager
def lack_of_derivatives_named() -> Iterator[None]:
    """Say what to do where autograd meets an operation whose derivative it cannot differentiate.

    Raises:
        ProbeError: Instead of its NotImplementedError.
    """
    try:
        yield
    except NotImplementedError as error:
        raise ProbeError(
            f"probe: an operation in the loss has no second derivative: {error} Use a version in "
            "plain PyTorch for the probe (for an EmbeddingBag a sum over an Embedding), e.g. by "
            "defining probe_loss(batch)."
        ) from error


def make_embeddings_dense(module: nn.Module) -> None:
    """Let embeddings have dense gradients: sparse ones cannot be differentiated again."""
    for part in module.modules():
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
            part.sparse = False


def require_dense(gradients: Sequence[Tensor], names: Sequence[str]) -> None:
    """Refuse sparse gradients.

    Raises:
        ProbeError: Naming the parameter.
    """
    for gradient, name in zip(gradients, names, strict=True):
        if gradient.layout != torch.strided:
            raise ProbeError(
                f"probe: expected dense gradients, got a sparse one of {name}, as "
                "nn.functional.embedding(..., sparse=True) gives it, which cannot be "
                "differentiated again. Use an nn.Embedding, whose `sparse` is switched off for "
                "the probe, or define probe_loss(batch) without it."
            )


def check_graph(
    loss: Tensor, gradients: Sequence[Tensor], originals: Sequence[nn.Parameter]
) -> None:
    """Refuse graphs whose second derivatives would come out wrong without an error.

    - A node that cannot be differentiated again. Autograd raises only where it lies between
      gradient and parameter; that of a ``once_differentiable`` function leads nowhere and would be
      left out without a word.
    - Weight normalisation by torch's fused kernel, whose second derivative is wrong (torch 2.13:
      ``gradgradcheck`` fails).
    - A parameter itself where its copy should be: the module keeps it somewhere out of sight.

    Raises:
        ProbeError: Naming which of these it is.
    """
    ids = {id(p) for p in originals}
    for node, user in _nodes([loss, *gradients]):
        if node.name() in _NO_SECOND_DERIVATIVE:
            raise ProbeError(
                "probe: an operation in the loss has no second derivative (a fused kernel or a "
                f"once_differentiable function, below {user} in the graph of the gradient). Use a "
                "version in plain PyTorch for the probe, e.g. by defining probe_loss(batch)."
            )
        if node.name().startswith("WeightNormInterfaceBackward"):
            raise ProbeError(
                "probe: torch's fused weight_norm has a wrong second derivative. Write the "
                "normalisation as g * v / v.norm() for the probe, or remove it."
            )
        if id(getattr(node, "variable", None)) in ids:
            shape = tuple(node.variable.shape)
            raise ProbeError(
                f"probe: the loss reaches a parameter of shape {shape} past the attributes of the "
                "module (through a closure, a tuple or a global), so its part in the landscape "
                "would be lost. Take it from an attribute, or define probe_loss(batch) that does."
            )


def _nodes(tensors: Sequence[Tensor]) -> Iterator[tuple[Any, str]]:
    """Walk the graph below ``tensors``: each node once, with the name of one that uses it."""
    pending = [(t.grad_fn, "the result") for t in tensors if t.grad_fn is not None]
    seen = set()
    while pending:
        node, user = pending.pop()
        if node not in seen:
            seen.add(node)
            yield node, user
            pending.extend((f, node.name()) for f, _ in node.next_functions if f is not None)
