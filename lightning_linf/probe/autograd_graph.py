"""Derivatives of a loss by autograd, and what its graph tells about them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction

from lightning_linf.errors import ProbeError

# Operations whose derivative jumps somewhere, by the beginnings of the names of their nodes.
_KINKS = (
    *("Relu", "LeakyRelu", "PreluKernel", "Rrelu", "Threshold", "Hardtanh", "Hardsigmoid", "Abs"),
    *("Clamp", "Max", "Min", "Amax", "Amin", "Aminmax", "AdaptiveMaxPool", "FractionalMaxPool"),
    *("Topk", "Sort", "Median", "Nanmedian", "Kthvalue", "L1Loss", "Where", "Cummax", "Cummin"),
)
_NO_SECOND_DERIVATIVE = ("torch::autograd::Error", "torch::autograd::NotImplemented")


def gradients_of(
    loss: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """Differentiate a loss, with zeros for parameters that do not enter it.

    Raises:
        ProbeError: If no parameter enters the loss, or a gradient is sparse.
    """
    with _missing_derivatives_explained():
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


def products_of(
    gradients: Sequence[Tensor],
    parameters: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    retain_graph: bool,
) -> tuple[Tensor, ...]:
    """Multiply the Hessian with a vector, given in one part for each parameter.

    The ``gradients`` with respect to the ``parameters`` must have a graph of their own.

    Raises:
        ProbeError: If an operation has no second derivative.
    """
    pairs = [(g, v) for g, v in zip(gradients, vectors, strict=True) if g.requires_grad]
    if not pairs:  # the loss is linear
        return tuple(torch.zeros_like(p) for p in parameters)
    with _missing_derivatives_explained():
        return torch.autograd.grad(
            [g for g, _ in pairs],
            parameters,
            grad_outputs=[v.to(g.dtype) for g, v in pairs],
            retain_graph=retain_graph,
            materialize_grads=True,
        )


@contextmanager
def _missing_derivatives_explained() -> Iterator[None]:
    """Say what to do where autograd cannot differentiate the derivative of an operation.

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


class GraphTraits(NamedTuple):
    """What the operations in a loss tell about its derivatives."""

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
