"""Run a module with operations that can be differentiated twice."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm  # no public name for what it makes
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from lightning_linf.functional.full_precision import full_float32_precision


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
        if device.type != "meta":  # which has none
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if any(isinstance(part, nn.RNNBase) for part in module.modules()):
            # cuDNN's recurrent kernels have no double backward, nor a backward in eval mode.
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        if any(map(_has_weight_norm, module.modules())):
            stack.enter_context(_PlainWeightNorm())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        yield


def make_embeddings_dense(module: nn.Module) -> None:
    """Let embeddings have dense gradients: sparse ones cannot be differentiated again."""
    for part in module.modules():
        if isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
            part.sparse = False


class _PlainWeightNorm(TorchFunctionMode):
    """Compute weight normalisation in plain operations instead of torch's fused kernel.

    The second derivative of the kernel is wrong (torch 2.13: ``gradgradcheck`` fails).
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not torch._weight_norm:
            return func(*args, **(kwargs or {}))
        v, g, dim = args
        return v * (g / torch.norm_except_dim(v, 2, dim))


def _has_weight_norm(part: nn.Module) -> bool:
    hooks = part._forward_pre_hooks.values()
    return isinstance(part, _WeightNorm) or any(isinstance(hook, WeightNorm) for hook in hooks)
