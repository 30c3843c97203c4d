"""Kernels that can be differentiated twice, while probing only."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm  # no public name for what it makes
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from lightning_linf.errors import ProbeError
from lightning_linf.functional.full_precision import full_float32_precision

# By the beginnings of their nodes' names; the gradient jumps there.
_KINKS = (
    *("Relu", "LeakyRelu", "PreluKernel", "Rrelu", "Threshold", "Hardtanh", "Hardsigmoid", "Abs"),
    *("Clamp", "Max", "Min", "Amax", "Amin", "Aminmax", "AdaptiveMaxPool", "FractionalMaxPool"),
    *("Topk", "Sort", "Median", "Nanmedian", "Kthvalue", "L1Loss", "Where", "Cummax", "Cummin"),
)
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
        if any(map(_has_weight_norm, module.modules())):
            stack.enter_context(_PlainWeightNorm())
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


def gradients_of(
    loss: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Differentiate a loss, with zeros for parameters that do not enter it.

    Raises:
        ProbeError: If none does, or a gradient is sparse.
    """
    with lack_of_derivatives_named():
        gradients = torch.autograd.grad(
            loss, parameters, create_graph=create_graph, allow_unused=True
        )
    for p, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and gradient.layout != torch.strided:
            raise ProbeError(
                f"probe: expected dense gradients, got a sparse one of shape {tuple(p.shape)}, as "
                "nn.functional.embedding(..., sparse=True) gives it, which cannot be "
                "differentiated again. Use an nn.Embedding, whose `sparse` is switched off for "
                "the probe, or define probe_loss(batch) without it."
            )
    if all(gradient is None for gradient in gradients):
        raise ProbeError(
            "probe: the loss depends on none of the parameters as attributes of the module hold "
            "them, so it has no landscape. Compute it from these, not from a copy of the module."
        )
    return tuple(
        torch.zeros_like(p) if gradient is None else gradient
        for p, gradient in zip(parameters, gradients, strict=True)
    )


class GraphTraits(NamedTuple):
    """What the operations in a loss tell about it."""

    has_kinks: bool  # the derivative of an operation jumps, as far as names tell
    has_custom_functions: bool  # the backward of an operation is not torch's own
    padding_rows: dict[int, list[int]]  # of embeddings, by the identity of their weights


def graph_traits(loss: Tensor) -> GraphTraits:
    """Look at the graph of a loss."""
    has_kinks = has_custom_functions = False
    padding_rows: dict[int, list[int]] = defaultdict(list)
    for node, _ in _nodes([loss]):
        name = node.name()
        has_kinks |= name.startswith(_KINKS)
        has_custom_functions |= isinstance(node, BackwardCFunction) or "CppNode" in name
        row = getattr(node, "_saved_padding_idx", -1)
        if 0 <= row < 2**62:  # torch keeps -1 as an unsigned number
            weight = getattr(node.next_functions[0][0], "variable", None)
            padding_rows[id(weight)].append(row)
    return GraphTraits(has_kinks, has_custom_functions, padding_rows)


class _PlainWeightNorm(TorchFunctionMode):
    """Normalise weights by operations whose second derivative is right.

    That of torch's fused kernel is wrong (torch 2.13: ``gradgradcheck`` fails).
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


def check_graph(
    loss: Tensor, gradients: Sequence[Tensor], originals: Sequence[nn.Parameter]
) -> None:
    """Refuse graphs whose second derivatives would come out wrong without an error.

    - A node that cannot be differentiated again. Autograd raises only where it lies between
      gradient and parameter; that of a ``once_differentiable`` function leads nowhere and would be
      left out without a word.
    - Weight normalisation by torch's fused kernel, called past torch's own ``weight_norm``.
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
