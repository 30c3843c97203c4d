"""Lower and upper ends of the smoothness of a landscape, for several partitions."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from torch import Tensor

from lightning_linf.functional.blocks import sum_over_blocks
from lightning_linf.functional.norm_search import LEAST_BUDGET
from lightning_linf.functional.offload import bring_back, set_aside
from lightning_linf.functional.operator_norm import OperatorNorm, operator_norm
from lightning_linf.functional.random import derive_seed
from lightning_linf.functional.random_vectors import normal_vector
from lightning_linf.partition import Partition
from lightning_linf.probe.landscape import Landscape
from lightning_linf.probe.products import HessianProducts
from lightning_linf.probe.upper_bounds import (
    UpperBound,
    WholeHessian,
    estimated_upper_bound,
    exact_upper_bound,
    whole_hessian,
)
from lightning_linf.report import BlockSmoothness

OPERATOR_HVPS = 32  # for the ends of N(Phi) and Lambda(Phi): two ascents and a certificate
_FREE_HVPS = 400  # where the whole Hessian is known, products cost nothing


class Brackets(NamedTuple):
    """Smoothness by partition, and the bound of "coordinate" with what its probes tell besides."""

    smoothness: dict[str, BlockSmoothness]
    coordinate: UpperBound
    direction: Tensor  # (d,), the worst step found for the partition of most blocks


def bracket_smoothness(
    landscape: Landscape,
    partitions: Sequence[Partition],
    products: HessianProducts,
    *,
    num_probes: int,
    max_hvps: int | None,
    seed: int,
    num_other_hvps: int = 0,
) -> Brackets:
    """Measure N(Phi), Lambda(Phi) and H(Phi); "coordinate" and "global" must be among the Phi.

    Each partition but "global" gets ``num_probes`` probes for the upper end of H(Phi) and up to
    ``OPERATOR_HVPS`` products for N(Phi) and Lambda(Phi), within ``max_hvps`` in all, of which
    ``num_other_hvps`` are left over. If ``max_hvps`` is more than these take, the searches have
    equal shares of all of it. From coarse to fine, the step that is worst for one partition
    is where the search for the next one starts; and where one partition refines another, lower ends
    of the finer one hold for the coarser one,
    and the upper end the other way. With no more parameters than probes, d products give the whole
    Hessian, which serves all partitions without error.

    Raises:
        ValueError: If ``max_hvps`` is too small.
        ProbeError: If a product is not finite or the Hessian comes out unsymmetric.
    """
    num_uppers = sum(partition.num_blocks > 1 for partition in partitions)
    budget = _budget(partitions, num_uppers, num_probes, max_hvps, num_other_hvps)
    is_ample = budget > num_probes * num_uppers + OPERATOR_HVPS * len(partitions)
    vector = landscape.parameters
    hessian: WholeHessian | None = None
    if vector.num_params <= num_probes:
        hessian = whole_hessian(products, vector)
    random_start = partial(
        normal_vector, vector.num_params, seed=derive_seed("start", seed), like=vector.like
    )
    starts = [set_aside(random_start())]  # what a search is given is not held here beside it
    smoothness: dict[str, BlockSmoothness] = {}
    uppers: dict[str, UpperBound] = {}
    by_size = sorted(partitions, key=lambda partition: partition.num_blocks)
    for position, partition in enumerate(by_size):
        name = partition.name
        if hessian is not None:
            uppers[name] = exact_upper_bound(hessian, partition, vector.sizes)
            norm = operator_norm(
                hessian.times, bring_back(starts.pop(), vector.device), partition,
                shares=uppers[name].block_parts,
                max_hvps=_FREE_HVPS, tol=1e-3, seed=seed,
            )._replace(num_hvps=0)  # fmt: skip
        else:
            if partition.num_blocks > 1:
                uppers[name] = estimated_upper_bound(
                    products, partition, vector, num_probes=num_probes,
                    probes_per_pass=landscape.probes_per_pass,
                    seed=derive_seed("upper", name, seed),
                )  # fmt: skip
                budget -= num_probes
            left = budget - num_probes * (num_uppers - len(uppers))
            shares = [uppers[name].block_parts if name in uppers else None]
            if name in uppers:
                uppers[name] = uppers[name]._replace(block_parts=None)
            share = left // (len(by_size) - position)
            norm = operator_norm(
                products.of_all, bring_back(starts.pop(), vector.device), partition,
                shares=shares.pop(),
                max_hvps=share if is_ample else min(OPERATOR_HVPS, share), seed=seed,
            )  # fmt: skip
            budget -= norm.num_hvps
        smoothness[name] = _assemble(partition, norm, uppers.get(name))
        starts.append(set_aside(norm.direction if norm.lower > 0 else random_start()))
        del norm
    _tighten(smoothness, partitions)
    in_order = {partition.name: smoothness[partition.name] for partition in partitions}
    return Brackets(in_order, uppers["coordinate"], bring_back(starts.pop(), vector.device))


def _budget(
    partitions: Sequence[Partition],
    num_uppers: int,
    num_probes: int,
    max_hvps: int | None,
    num_other_hvps: int,
) -> int:
    """Products that the brackets may take; the gradient's own steps take one each besides."""
    if max_hvps is None:
        return num_probes * num_uppers + OPERATOR_HVPS * len(partitions)
    least = num_probes * num_uppers + (LEAST_BUDGET + 1) * len(partitions) + num_other_hvps
    others = f", and {num_other_hvps} for spectral" if num_other_hvps else ""
    if max_hvps < least:
        raise ValueError(
            f"measure_geometry: expected `max_hvps` >= {least} ({num_probes} probes for each "
            f"of {num_uppers} partitions and {LEAST_BUDGET + 1} products for each of "
            f"{len(partitions)}{others}), got {max_hvps}. Raise it, or measure fewer partitions."
        )
    return max_hvps - len(partitions) - num_other_hvps


def _assemble(
    partition: Partition, norm: OperatorNorm, upper: UpperBound | None
) -> BlockSmoothness:
    # ||(Hv)_b|| is at most norm.upper times root(share_b / d_b) for any v of norm 1: another bound
    # of H(Phi), the better one for few blocks, and with one block N(Phi) itself.
    value, error = norm.upper * float(sum_over_blocks(norm.shares.sqrt(), partition)), 0.0
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
        adaptive_lower=norm.adaptive_lower,
    )


def _tighten(smoothness: dict[str, BlockSmoothness], partitions: Sequence[Partition]) -> None:
    """Use that N and Lambda of a partition that refines another are at most those of the other."""
    for fine in partitions:
        for coarse in partitions:
            if coarse.num_blocks >= fine.num_blocks or not fine.refines(coarse):
                continue
            below, above = smoothness[fine.name], smoothness[coarse.name]
            smoothness[coarse.name] = above = replace(
                above,
                lower=max(above.lower, below.lower),
                # Where ends meet, as for equal norms, rounding may put them in the wrong order.
                operator_upper=max(above.operator_upper, below.adaptive_lower),
                upper=max(above.upper, below.lower),
                adaptive_lower=max(above.adaptive_lower, below.adaptive_lower),
            )
            if above.operator_upper < below.operator_upper:
                smoothness[fine.name] = replace(
                    below,
                    operator_upper=above.operator_upper,
                    operator_upper_residual=above.operator_upper_residual,
                )
