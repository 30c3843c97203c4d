"""Try on one batch whether a loss is a function of the parameters and twice differentiable."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_linf.distributed.ranks import Ranks
from lightning_linf.errors import RefusedLossError, RestoreError
from lightning_linf.functional.in_pieces import largest_magnitude, sum_in_pieces
from lightning_linf.functional.random import derive_seed
from lightning_linf.functional.random_vectors import normal_vector
from lightning_linf.functional.vector_shards import max_over_shards, sum_over_shards
from lightning_linf.probe.autograd_graph import (
    GradientRoots,
    add_gradients,
    check_graph,
    gradients_of,
    graph_traits,
)
from lightning_linf.probe.functional_module import FunctionalModule
from lightning_linf.probe.parallel_loss import require_parallel_loss
from lightning_linf.probe.parameters import ParameterVector

_T = TypeVar("_T")
# From a vector and an offset (d,) from the present point to its parameters, as leaves, and the
# loss; where vectors are shards, to this rank's term of it.
Evaluate = Callable[[ParameterVector, Tensor | None], tuple[list[Tensor], Tensor]]

# The comparison is made this far from the present point, relative to a parameter's size: units that
# sit exactly on their kink here, as at an initialisation with zeros, do not there.
_AWAY = 1e-3
# Two steps show the same mismatch if their changes differ by at most this share of it.
_CONSISTENT = 0.1


class _Steps(NamedTuple):
    """Which steps to compare over, and how far the two sides may be apart."""

    steps: tuple[float, ...]  # lengths, relative to a parameter's size
    product: float  # largest relative distance of H v and the change of the gradient
    slope: float  # largest distance of slopes of the loss, relative to the gradient


# In float32, H v and the change of the gradient are some 1e-4 apart for smooth networks, and up to
# 1e-2 for sharp ones.
_FIRST = _Steps((1e-3,), product=0.01, slope=0.01)
# In float64 they are some 1e-6 apart. Smaller steps cross fewer kinks, until rounding takes over.
_FINE = _Steps((1e-6, 1e-8, 1e-10), product=0.01, slope=1e-4)
# For those whose loss is float32 all the same: over finer steps what they round would not change.
_ROUNDED = _Steps((1e-4, 1e-5), product=0.05, slope=0.01)
# For modules that compute in float32 even if parameters and batch are float64.
_COARSE = _Steps((1e-3, 3e-3), product=0.05, slope=0.01)


class _Mismatch(NamedTuple):
    relative: float  # distance of H v and the change over the longer of them
    # Something is held constant on purpose: the gradient is not the slope of the loss, or all of
    # its backward is torch's own.
    is_detached: bool


class _Verdict(NamedTuple):
    agrees: bool
    mismatch: _Mismatch | None = None  # None if no two steps show the same one


def check_loss(function: FunctionalModule, ranks: Ranks) -> str | None:
    """Evaluate the first loss twice, and compare a product H v with differences of its gradient.

    They are compared near the present point along one random direction, in which every parameter
    that has a gradient moves by the same share of its size. A mismatch counts if two steps of
    different lengths show the same one; across kinks (as of ReLU) and under rounding they do not,
    and then nothing is said. Cost: two losses, and mostly one product and two gradients; where
    these disagree, up to 14 gradients more, in float64.

    Args:
        function: Entered. Its graphs must be gone.
        ranks: All of them. They check one loss together where vectors are shards; otherwise each
            checks its own.

    Returns:
        A remark if they differ because gradients are stopped (a detach, a straight-through
        estimator): the gradient is not the slope of the loss, or no operation in it has a backward
        that is not torch's own. None if they do not differ.

    Raises:
        RefusedLossError: If the two losses differ (by 1e-5 on the CPU, else 1e-3); or if the change
            of the gradient differs from H v otherwise, by more than 1 % (5 % for a module that
            computes in float32 even if its parameters and batch are float64).
    """
    if function.is_tensor_parallel and function.mode == "eval":
        require_parallel_loss(function)
    vector, shards = function.parameters, function.parameters.shards

    def evaluate(vector: ParameterVector, offset: Tensor | None) -> tuple[list[Tensor], Tensor]:
        leaves, loss = function.evaluate(0, offset, vector)
        return leaves, loss if shards is None else loss / shards.num_ranks

    sizes = _same_loss(evaluate, vector)
    ranks = Ranks(None, vector.device) if shards is None else ranks
    mismatch = _mismatch(evaluate, vector, sizes, ranks)
    remark = None if mismatch is None else _remark(mismatch, evaluate, vector)
    function.free_copies()
    return remark


def _remark(mismatch: _Mismatch, evaluate: Evaluate, vector: ParameterVector) -> str:
    """Say what a mismatch means if something is detached; else raise a RefusedLossError."""
    parameters, loss = evaluate(vector, None)
    check_graph(loss, gradients_of(loss, parameters), vector.originals)  # which may know the cause
    if mismatch.is_detached:
        return (
            f"the gradient changes by {mismatch.relative:.1%} other than H v along a random v, for "
            "something that depends on the parameters is detached, or an operation has a backward "
            "of its own. What is measured is the second derivative that autograd takes, with all "
            "that is detached held constant."
        )
    raise RefusedLossError(
        "probe: expected H v to be the change of the gradient along v, but for a random v they "
        f"differ by {mismatch.relative:.1%}. An operation in the loss has a backward that leaves "
        "autograd (a custom autograd.Function that computes with detached values or NumPy, a fused "
        "kernel). Use plain PyTorch for the probe, e.g. by defining probe_loss(batch)."
    )


def _same_loss(evaluate: Evaluate, vector: ParameterVector) -> list[float]:
    """Require the same loss twice; give the root mean square of each parameter.

    Parameters that are zero get the mean of the others, so that they move, too.
    """
    first = evaluate(vector, None)[1].item()
    parameters, loss = evaluate(vector, None)
    second = loss.item()
    tolerance = 1e-5 if vector.device.type == "cpu" else 1e-3  # GPUs add up in any order
    if abs(first - second) > tolerance * max(abs(first), abs(second)):
        raise RefusedLossError(
            f"probe: expected the same loss twice at one point, got {first:g} and {second:g}. "
            "Evaluating it changes something outside the module that it depends on (a global, a "
            "closure, an iterator, a file). Define probe_loss(batch) that depends on nothing else."
        )
    norms = [_norm(p.detach()) for p in parameters]
    sizes = [norm / max(size, 1) ** 0.5 for norm, size in zip(norms, vector.sizes, strict=True)]
    positive = [size for size in sizes if size > 0]
    typical = sum(positive) / len(positive) if positive else 1.0
    return [size if size > 0 else typical for size in sizes]


def _mismatch(
    evaluate: Evaluate, vector: ParameterVector, sizes: list[float], ranks: Ranks
) -> _Mismatch | None:
    # What fails says that the module does not run in this dtype, or the probe itself will say why.
    def trial(vector: ParameterVector) -> _Trial | None:
        return _tried(ranks, lambda: _Trial(evaluate, vector, sizes, ranks))

    coarse = trial(vector)
    if coarse is None or coarse.compare(_FIRST).agrees:
        return None
    has_kinks, is_custom = coarse.has_kinks, coarse.is_custom
    del coarse  # its vectors need not live beside those in float64
    fine = trial(vector.widened(torch.float64))
    # A kernel for float32 alone is not tried by what stands in for it.
    if fine is not None and fine.is_custom == is_custom:
        verdict = fine.compare(_ROUNDED if fine.is_rounded else _FINE)
        if verdict.agrees or verdict.mismatch is not None:
            return verdict.mismatch
    del fine
    coarse = None if has_kinks else trial(vector)
    return None if coarse is None else coarse.compare(_COARSE).mismatch


def _tried(ranks: Ranks, work: Callable[[], _T]) -> _T | None:
    """Give the result of work, or None if it fails on any rank, but not if state was lost."""
    try:
        return ranks.together(work)
    except Exception as error:
        is_lost = float(isinstance(error, RestoreError))
        if ranks.add(lambda: (is_lost, 0.0))[0]:
            raise
        return None


class _Trial:
    """A product and differences of the gradient in one dtype, in units of the parameters' sizes."""

    def __init__(
        self, evaluate: Evaluate, vector: ParameterVector, sizes: list[float], ranks: Ranks
    ) -> None:
        self._evaluate, self._vector, self._sizes, self._ranks = evaluate, vector, sizes, ranks
        self._origin = self._scaled(self._draw("origin")).mul_(_AWAY)
        parameters, loss = evaluate(vector, self._origin)
        traits = graph_traits(loss)
        flags = torch.tensor([traits.has_kinks, traits.has_custom_functions]).to(vector.like)
        self.has_kinks, self.is_custom = (max_over_shards(flags) > 0).tolist()
        self.is_rounded = torch.finfo(loss.dtype).eps > torch.finfo(vector.dtype).eps
        gradients = gradients_of(loss, parameters)
        gradient = self._scaled(vector.flatten(gradients).detach())
        # Training never moves along the others, and along padding only by other uses of its row.
        direction = self._draw("direction").mul_(gradient != 0)
        for place, p in enumerate(parameters):
            for row in traits.padding_rows.get(id(p), ()):
                vector.row_of(direction, place, row).zero_()
        self._slope = float(sum_over_shards(torch.dot(gradient, direction)))
        self._length = _norm(gradient)
        self._rounding = abs(_value(loss)) * torch.finfo(loss.dtype).eps
        roots = GradientRoots(gradients)
        del gradient, gradients, loss
        self._direction = self._scaled(direction)
        self._product = vector.zeros()
        roots.add_products(
            parameters,
            vector.unflatten(self._direction),
            vector.unflatten(self._product),
            1.0,
            retain_graph=False,
        )
        self._scaled(self._product)

    def compare(self, allowed: _Steps) -> _Verdict:
        """Compare the product with differences over some steps; one that agrees is enough."""
        mismatch: _Mismatch | None = None
        previous: tuple[Tensor, bool] | None = None  # of the step before
        for step in allowed.steps:
            difference = _tried(self._ranks, partial(self._difference, step))
            if difference is None:  # a loss that is not finite there
                break
            change, slope = difference
            relative = _relative(change, self._product)
            if relative <= allowed.product:
                return _Verdict(agrees=True)
            margin = allowed.slope * self._length + 10 * self._rounding / step
            is_off = abs(slope - self._slope) > margin
            if previous is not None and _relative(change, previous[0]) <= _CONSISTENT * relative:
                is_detached = (is_off and previous[1]) or not self.is_custom
                mismatch = _Mismatch(relative, is_detached)
            previous = change, is_off
        return _Verdict(agrees=False, mismatch=mismatch)

    def _difference(self, step: float) -> tuple[Tensor, float]:
        """Central differences of the gradient (d,) and of the loss along the direction."""
        change, losses = self._vector.zeros(), []
        for sign in (1, -1):
            parameters, loss = self._evaluate(
                self._vector, self._origin.add(self._direction, alpha=sign * step)
            )
            add_gradients(loss, parameters, self._vector.unflatten(change), sign)
            losses.append(_value(loss))
            del parameters, loss
        return self._scaled(change.div_(2 * step)), (losses[0] - losses[1]) / (2 * step)

    def _draw(self, name: str) -> Tensor:
        vector = self._vector
        seed = derive_seed("guard", name)
        return normal_vector(vector.num_params, seed=seed, like=vector.like)

    def _scaled(self, values: Tensor) -> Tensor:
        """Multiply by the size of each parameter, in place."""
        for part, size in zip(self._vector.unflatten(values), self._sizes, strict=True):
            part.mul_(size)
        return values


def _value(loss: Tensor) -> float:
    """Give the loss, of which a rank may have a term."""
    return float(sum_over_shards(loss.detach().clone()))


def _norm(*vectors: Tensor) -> float:
    """Euclidean norm, at any scale, of a vector or of the difference of two."""
    scale = max(float(largest_magnitude(vector)) for vector in vectors)
    if scale == 0 or not math.isfinite(scale):
        return scale

    def square(first: Tensor, *second: Tensor) -> Tensor:
        scaled = first / scale
        return (scaled.sub_(second[0] / scale) if second else scaled).square_()

    return scale * float(sum_in_pieces(square, *(vector.reshape(-1) for vector in vectors)).sqrt())


def _relative(a: Tensor, b: Tensor) -> float:
    """Distance over the longer norm; 0 for two zeros."""
    distance = _norm(a, b)
    return distance / max(_norm(a), _norm(b)) if distance else 0.0
