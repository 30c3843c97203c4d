"""Smoothness of a landscape for several partitions, from Hessian-vector products they share."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.errors import ProbeError
from lightning_linf.functional.batch_excess import batch_excess, excess_of_halves
from lightning_linf.functional.block_smoothness import block_cauchy, block_smoothness_compute
from lightning_linf.functional.blocks import wide_dtype
from lightning_linf.functional.one_one_norm import cross_fitted_one_one_norm_compute
from lightning_linf.functional.operator_norm import LEAST_BUDGET, OperatorNorm, operator_norm
from lightning_linf.functional.product_sums import (
    ProductSums,
    product_sums_init,
    product_sums_update,
)
from lightning_linf.functional.random import cauchy, derive_seed, normal
from lightning_linf.partition import Partition
from lightning_linf.probe.landscape import Landscape
from lightning_linf.report import BlockSmoothness

OPERATOR_HVPS = 40  # for both ends of an operator norm: two ascents and two certificates
_FREE_HVPS = 400  # where the whole Hessian is known, products cost nothing
# Of |u.Hv - v.Hu| to what cancels in it: float32 gives 1e-6, a wrong second derivative over 1e-2.
_SYMMETRY_TOLERANCE = 1e-3


class Brackets(NamedTuple):
    """Smoothness by partition, and what fell off while measuring it."""

    smoothness: dict[str, BlockSmoothness]
    lambda_max: float
    lambda_max_relative_error: float  # of its upper end, which may fail
    tensor_shares: Tensor  # (T,): of the rows of each parameter tensor in the (1,1)-norm
    batch_excess: float | None  # of the (1,1)-norm of halves of the batches over that of all


class _Upper(NamedTuple):
    """Of one partition, an estimate of a bound of H(Phi) from above."""

    value: float
    relative_error: float
    block_parts: Tensor  # (B,): of the blocks' rows, but for a common factor
    tensor_parts: Tensor  # (T,): of the parameter tensors' rows, but for a common factor
    num_hvps: int
    batch_excess: float | None = None


class Halves(NamedTuple):
    """Two halves of several batches."""

    multiply: Callable[[Tensor], Tensor]  # from (c, d) to the products with both, (2, c, d)
    first: float  # share of the first in the weights

    def whole(self, both: Tensor) -> Tensor:
        """Give the products with all batches. Shapes: (2, c, d) -> (c, d)."""
        return torch.lerp(both[1], both[0], self.first)


def bracket_smoothness(
    landscape: Landscape,
    partitions: Sequence[Partition],
    multiply: Callable[[Tensor], Tensor],
    halves: Halves | None,
    *,
    num_probes: int,
    max_hvps: int | None,
    seed: int,
) -> Brackets:
    """Measure N(Phi) and H(Phi) of each partition; "coordinate" and "global" must be among them.

    Each partition but "global" gets ``num_probes`` probes for the upper end of H(Phi) and up to
    ``OPERATOR_HVPS`` products for both ends of N(Phi), within ``max_hvps`` in all. From coarse to
    fine, the step that is worst for one partition is where the next one starts; and a partition
    that refines another lends it its lower end and borrows its upper one. With no more parameters
    than probes, d products give the whole Hessian, which serves all partitions without error.

    Raises:
        ValueError: If ``max_hvps`` is too small.
        ProbeError: If a product is not finite or the Hessian comes out unsymmetric.
    """
    num_uppers = sum(partition.num_blocks > 1 for partition in partitions)
    budget = num_probes * num_uppers + OPERATOR_HVPS * len(partitions)
    if max_hvps is not None:
        along_gradient = len(partitions)  # one product each, spent elsewhere
        least = num_probes * num_uppers + LEAST_BUDGET * len(partitions) + along_gradient
        if max_hvps < least:
            raise ValueError(
                f"measure_geometry: expected `max_hvps` >= {least} ({num_probes} probes for each "
                f"of {num_uppers} partitions and {LEAST_BUDGET + 1} products for each of "
                f"{len(partitions)}), got {max_hvps}. Raise it, or measure fewer partitions."
            )
        budget = min(budget, max_hvps - along_gradient)
    vector = landscape.parameters
    like = torch.empty(0, dtype=vector.dtype, device=vector.device)
    hessian: Tensor | None = None
    excess: float | None = None
    if vector.num_params <= num_probes:
        unit = torch.eye(vector.num_params, dtype=like.dtype, device=like.device)
        if halves is None:
            hessian = multiply(unit)
        else:
            both = halves.multiply(unit)
            hessian = halves.whole(both)
            norms = [float((part / _scale_of(both)).abs().sum()) for part in (*both, hessian)]
            excess = excess_of_halves(norms, halves.first)
        scaled = hessian / _scale_of(hessian)
        _check_symmetry((scaled - scaled.T).abs().sum(), 2 * scaled.abs().sum())
    start = normal(
        vector.num_params, seed=derive_seed("start", seed), dtype=like.dtype, device=like.device
    )
    smoothness: dict[str, BlockSmoothness] = {}
    uppers: dict[str, _Upper] = {}
    by_size = sorted(partitions, key=lambda partition: partition.num_blocks)
    for position, partition in enumerate(by_size):
        name = partition.name
        if hessian is not None:
            uppers[name] = _exact_upper(hessian, partition, vector.sizes)
            norm = operator_norm(
                hessian.mv, start, partition, shares=uppers[name].block_parts,
                max_hvps=_FREE_HVPS, tol=1e-3, seed=seed,
            )._replace(num_hvps=0)  # fmt: skip
        else:
            if partition.num_blocks > 1:
                uppers[name] = _estimated_upper(
                    multiply, halves, partition, num_probes, landscape.probes_per_pass,
                    vector.sizes, like, derive_seed("upper", name, seed),
                )  # fmt: skip
                budget -= num_probes
            left = budget - num_probes * (num_uppers - len(uppers))
            norm = operator_norm(
                multiply, start, partition,
                shares=uppers[name].block_parts if name in uppers else None,
                max_hvps=min(OPERATOR_HVPS, left // (len(by_size) - position)), seed=seed,
            )  # fmt: skip
            budget -= norm.num_hvps
        smoothness[name] = _assemble(partition, norm, uppers.get(name))
        start = norm.direction if norm.lower > 0 else start
    _tighten(smoothness, partitions)
    tensor_parts = uppers["coordinate"].tensor_parts
    tiny = torch.finfo(tensor_parts.dtype).tiny
    return Brackets(
        smoothness={partition.name: smoothness[partition.name] for partition in partitions},
        lambda_max=smoothness["global"].lower / vector.num_params,
        lambda_max_relative_error=smoothness["global"].operator_upper_residual,
        tensor_shares=tensor_parts / tensor_parts.sum().clamp(min=tiny),
        batch_excess=uppers["coordinate"].batch_excess if hessian is None else excess,
    )


def checked_products(
    hvp: Callable[[Tensor], Tensor], on_hvps: Callable[[int], object] | None
) -> Callable[[Tensor], Tensor]:
    """Make the product with the Hessian that refuses inf and NaN, and counts for progress bars."""

    def multiply(vectors: Tensor) -> Tensor:
        products = hvp(vectors)
        if not products.isfinite().all():
            raise ProbeError(
                "probe: expected finite Hessian-vector products, got inf or NaN although the loss "
                "is finite. Look for a square root, logarithm or norm at zero in the loss."
            )
        if on_hvps is not None:
            on_hvps(1 if vectors.ndim == 1 else len(vectors))
        return products

    return multiply


def _exact_upper(hessian: Tensor, partition: Partition, tensor_sizes: Sequence[int]) -> _Upper:
    scale = _scale_of(hessian)  # squares of very small or large entries do not fit
    matrix = (hessian / scale).to(wide_dtype(hessian))
    roots = partition.sizes(matrix).sqrt()
    row_norms = partition.block_sum(matrix.square()).sqrt() @ roots  # (d,): q_i
    parts = roots * partition.block_sum(row_norms.square()).sqrt()
    tensors = torch.stack([part.sum() for part in row_norms.split_with_sizes(list(tensor_sizes))])
    return _Upper(float(parts.sum()) * float(scale), 0.0, parts, tensors, len(hessian))


def _estimated_upper(
    multiply: Callable[[Tensor], Tensor],
    halves: Halves | None,
    partition: Partition,
    num_probes: int,
    probes_per_pass: int,
    tensor_sizes: Sequence[int],
    like: Tensor,
    seed: int,
) -> _Upper:
    is_coordinate = partition.name == "coordinate"

    def draw(probe: int) -> Tensor:
        if is_coordinate:
            return cauchy(
                partition.num_params, seed=seed, probe=probe, dtype=like.dtype, device=like.device
            )
        return block_cauchy(partition, seed=seed, probe=probe, like=like)

    sums = product_sums_init(tensor_sizes, num_probes, like)
    half_logs = like.new_zeros(2, partition.num_params) if is_coordinate and halves else None
    first: tuple[Tensor, Tensor] | None = None
    for begin in range(0, num_probes, probes_per_pass):
        probes = range(begin, min(begin + probes_per_pass, num_probes))
        vectors = torch.stack([draw(probe) for probe in probes])
        if halves is not None and half_logs is not None:
            both = halves.multiply(vectors)
            products = halves.whole(both)
            for half in range(2):
                for product in both[half]:
                    half_logs[half] += product.abs().log_()
            del both
        else:
            products = multiply(vectors)
        for probe, vector, product in zip(probes, vectors, products, strict=True):
            product_sums_update(sums, product, probe, tensor_sizes)
            if probe == 0:
                first = vector.clone(), product.clone()
            elif first is not None:
                _compare_products(*first, vector, product)
                first = None
    if is_coordinate:
        norm = cross_fitted_one_one_norm_compute(sums, tensor_sizes, seed)
        excess = None
        if halves is not None and half_logs is not None:
            log_sums = torch.cat([half_logs, sums.log_sums.sum(dim=0, keepdim=True)])
            excess = batch_excess(log_sums, num_probes, halves.first)
        rows, error = _row_parts(sums, num_probes), float(norm.relative_error)
        return _Upper(float(norm.value), error, rows, norm.tensor_norms, num_probes, excess)
    bound = block_smoothness_compute(sums, tensor_sizes, partition, seed)
    error = float(bound.relative_error)
    return _Upper(float(bound.value), error, bound.block_parts, bound.tensor_parts, num_probes)


def _row_parts(sums: ProductSums, num_probes: int) -> Tensor:
    """Norm of each row (d,) but for a common factor."""
    logs = sums.log_sums.sum(dim=0) / num_probes
    return (logs - logs.max().clamp(min=torch.finfo(logs.dtype).min)).exp()


def _assemble(partition: Partition, norm: OperatorNorm, upper: _Upper | None) -> BlockSmoothness:
    # ||(Hv)_b|| is at most norm.upper times root(share_b / d_b) for any v of norm 1: another bound
    # of H(Phi), the better one for few blocks, and with one block N(Phi) itself.
    value, error = norm.upper * float(norm.shares.sqrt().sum()), 0.0
    if upper is not None and (upper.value < value or partition.name == "coordinate"):
        # H(Phi) is at least N(Phi), so an estimate below its lower end can be bettered.
        value, error = max(upper.value, norm.lower), upper.relative_error
    return BlockSmoothness(
        num_blocks=partition.num_blocks,
        lower=norm.lower,
        operator_upper=norm.upper,
        upper=value,
        upper_relative_error=error,
        lower_increase=norm.lower_increase,
        operator_upper_residual=norm.upper_residual,
        num_hvps=norm.num_hvps + (0 if upper is None else upper.num_hvps),
    )


def _tighten(smoothness: dict[str, BlockSmoothness], partitions: Sequence[Partition]) -> None:
    """N of a partition that refines another is at most that of the other."""
    for fine in partitions:
        for coarse in partitions:
            if coarse.num_blocks >= fine.num_blocks or not fine.refines(coarse):
                continue
            below, above = smoothness[fine.name], smoothness[coarse.name]
            if below.lower > above.lower:
                smoothness[coarse.name] = replace(
                    above, lower=below.lower, upper=max(above.upper, below.lower)
                )
            if above.operator_upper < below.operator_upper:
                smoothness[fine.name] = replace(
                    below,
                    operator_upper=above.operator_upper,
                    operator_upper_residual=above.operator_upper_residual,
                )


def _compare_products(u: Tensor, hu: Tensor, v: Tensor, hv: Tensor) -> None:
    """Compare u.Hv with v.Hu, which costs no further product."""
    scale = torch.maximum(_scale_of(hu), _scale_of(hv))
    hu, hv = hu / scale, hv / scale
    difference = torch.dot(u, hv) - torch.dot(v, hu)
    _check_symmetry(difference.abs(), torch.dot(u.abs(), hv.abs()) + torch.dot(v.abs(), hu.abs()))


def _scale_of(values: Tensor) -> Tensor:
    """Largest magnitude, or the least normal number. Shape: ()."""
    return values.abs().amax().clamp(min=torch.finfo(values.dtype).tiny)


def _check_symmetry(difference: Tensor, cancelled: Tensor) -> None:
    if difference > _SYMMETRY_TOLERANCE * cancelled:
        raise ProbeError(
            "probe: expected a symmetric Hessian, but u.Hv and v.Hu differ by "
            f"{float(difference / cancelled):.1e} of what they sum. An operation in the loss "
            "has a wrong second derivative (a custom autograd.Function whose backward is not "
            "differentiable, say). Use plain PyTorch for the probe, e.g. in probe_loss(batch)."
        )
