"""Derivatives of a loss by autograd, and what its graph tells about them."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from lightning_linf.distributed.stretches import is_exchange
from lightning_linf.errors import ProbeError

# Operations whose derivative jumps somewhere, by the beginnings of the names of their nodes.
_KINKS = (
    *("Relu", "LeakyRelu", "PreluKernel", "Rrelu", "Threshold", "Hardtanh", "Hardsigmoid", "Abs"),
    *("Clamp", "Max", "Min", "Amax", "Amin", "Aminmax", "AdaptiveMaxPool", "FractionalMaxPool"),
    *("Topk", "Sort", "Median", "Nanmedian", "Kthvalue", "L1Loss", "Where", "Cummax", "Cummin"),
)
_NO_SECOND_DERIVATIVE = ("torch::autograd::Error", "torch::autograd::NotImplemented")


def gradients_of(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Differentiate a loss so that the gradients can be differentiated again.

    Parameters that do not enter the loss have zeros.

    Raises:
        ProbeError: If no parameter enters the loss, or a gradient is sparse.
    """
    with _missing_derivatives_explained():
        gradients = torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)
    for gradient in gradients:
        if gradient is not None:
            _require_dense(gradient)
    _require_any(any(gradient is not None for gradient in gradients), loss)
    return tuple(
        torch.zeros_like(p) if gradient is None else gradient
        for p, gradient in zip(parameters, gradients, strict=True)
    )


def add_gradients(
    loss: Tensor,
    parameters: Sequence[Tensor],
    sums: Sequence[Tensor],
    share: float,
    *,
    retain_graph: bool = False,
) -> None:
    """Add the gradients of a loss, times ``share``, to the sums, one for each parameter.

    The graph is used up unless it is retained. Each gradient is added and freed as soon as it is
    there, so that they are not all alive beside the sums.

    Raises:
        ProbeError: As :func:`gradients_of`.
    """
    num_added = _add_derivatives([loss], [None], parameters, sums, share, retain_graph=retain_graph)
    _require_any(num_added > 0, loss)


class GradientRoots:
    """Where the graph of a gradient begins: all that products with the Hessian need of it.

    The values of the gradients are not kept.

    Args:
        gradients: With a graph of their own, from :func:`gradients_of`.
    """

    def __init__(self, gradients: Sequence[Tensor]) -> None:
        self._edges = [get_gradient_edge(g) if g.requires_grad else None for g in gradients]
        self._dtypes = [gradient.dtype for gradient in gradients]

    def add_products(
        self,
        parameters: Sequence[Tensor],
        vectors: Sequence[Tensor],
        sums: Sequence[Tensor],
        share: float,
        *,
        retain_graph: bool,
    ) -> None:
        """Add the product of the Hessian with a vector, times ``share``, to the sums.

        Vector and sums are given in one part for each parameter. A part of the product is freed as
        soon as it is added.

        Raises:
            ProbeError: If an operation has no second derivative.
        """
        used = [
            (edge, vector.to(dtype))
            for edge, vector, dtype in zip(self._edges, vectors, self._dtypes, strict=True)
            if edge is not None
        ]
        if used:  # otherwise the loss is linear
            edges, parts = zip(*used, strict=True)
            _add_derivatives(edges, parts, parameters, sums, share, retain_graph=retain_graph)


def _add_derivatives(
    roots: Sequence[Any],
    vectors: Sequence[Tensor | None],
    parameters: Sequence[Tensor],
    sums: Sequence[Tensor],
    share: float,
    *,
    retain_graph: bool,
) -> int:
    """Differentiate and add to the sums; give the number of parameters that were reached."""
    added = []

    def add(total: Tensor, derivative: Tensor | None) -> Tensor | None:
        if derivative is None:  # what there was has been taken on the way
            return None
        _require_dense(derivative)
        total.add_(derivative, alpha=share)
        added.append(True)
        # What autograd collects in place of the derivative, which can be freed now.
        return derivative.new_zeros(()).expand_as(derivative)

    handles = [
        p.register_hook(partial(add, total))  # type: ignore[no-untyped-call]
        for p, total in zip(parameters, sums, strict=True)
    ]
    try:
        with _missing_derivatives_explained():
            torch.autograd.grad(
                roots, parameters, vectors, retain_graph=retain_graph, allow_unused=True
            )
    finally:
        for handle in handles:
            handle.remove()
    return len(added)


def _require_dense(gradient: Tensor) -> None:
    if gradient.layout != torch.strided:
        raise ProbeError(
            "probe: expected dense gradients, got a sparse one of shape "
            f"{tuple(gradient.shape)}, as nn.functional.embedding(..., sparse=True) gives it, "
            "which cannot be differentiated again. Use an nn.Embedding, whose `sparse` is "
            "switched off for the probe, or define probe_loss(batch) without it."
        )


def _require_any(is_reached: bool, loss: Tensor) -> None:
    if not is_reached:
        for node, _ in nodes_of([loss]):
            _refuse_reentrant(node)
        raise ProbeError(
            "probe: the loss depends on none of the parameters as attributes of the module hold "
            "them, so it has no landscape. Compute it from these, not from a copy of the module."
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
    for node, _ in nodes_of([loss]):
        name = node.name()
        has_kinks |= name.startswith(_KINKS)
        is_custom = isinstance(node, BackwardCFunction) and not is_exchange(node)
        has_custom_functions |= is_custom or "CppNode" in name
        row = getattr(node, "_saved_padding_idx", -1)
        if 0 <= row < 2**62:  # torch keeps -1 as an unsigned number
            weight = node.next_functions[0][0]
            if is_exchange(weight):  # of a stretch, which is the leaf
                weight = weight.next_functions[0][0]
            padding_rows[id(getattr(weight, "variable", None))].append(row)
    return GraphTraits(has_kinks, has_custom_functions, padding_rows)


def check_graph(
    loss: Tensor, gradients: Sequence[Tensor], originals: Sequence[nn.Parameter]
) -> None:
    """Refuse graphs whose second derivatives would come out wrong without an error.

    - A node that cannot be differentiated again. Autograd raises only where it lies between
      gradient and parameter; that of a ``once_differentiable`` function leads nowhere and would be
      left out without a word.
    - A reentrant checkpoint, whose parameters gradients with respect to given tensors do not reach.
    - Weight normalisation by torch's fused kernel, called past torch's own ``weight_norm``.
    - A parameter itself where its copy should be: the module keeps it somewhere out of sight.

    Raises:
        ProbeError: Naming which of these it is.
    """
    ids = {id(p) for p in originals}
    for node, user in nodes_of([loss, *gradients]):
        if node.name() in _NO_SECOND_DERIVATIVE:
            raise ProbeError(
                "probe: an operation in the loss has no second derivative (a fused kernel or a "
                f"once_differentiable function, below {user} in the graph of the gradient). Use a "
                "version in plain PyTorch for the probe, e.g. by defining probe_loss(batch)."
            )
        _refuse_reentrant(node)
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


def _refuse_reentrant(node: Any) -> None:
    if node.name() == "CheckpointFunctionBackward":
        raise ProbeError(
            "probe: expected no reentrant checkpoint in the loss, but there is one, and gradients "
            "of what lies inside it cannot be taken one by one. Use torch.utils.checkpoint with "
            "use_reentrant=False, or define probe_loss(batch) without it."
        )


def nodes_of(tensors: Sequence[Tensor]) -> Iterator[tuple[Any, str]]:
    """Walk the graph below ``tensors``: each node once, with the name of one that uses it."""
    pending = [(t.grad_fn, "the result") for t in tensors if t.grad_fn is not None]
    seen = set()
    while pending:
        node, user = pending.pop()
        if node not in seen:
            seen.add(node)
            yield node, user
            pending.extend((f, node.name()) for f, _ in node.next_functions if f is not None)
