"""Upper bounds of the blockwise smoothness H(Phi); that of "coordinate" is the (1,1)-norm."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_linf.functional.batch_excess import batch_excess, excess_of_halves
from lightning_linf.functional.block_smoothness import block_cauchy, block_smoothness_compute
from lightning_linf.functional.dtypes import wide_dtype
from lightning_linf.functional.offload import bring_back, set_aside
from lightning_linf.functional.one_one_norm import cross_fitted_one_one_norm_compute
from lightning_linf.functional.product_sums import (
    ProductSums,
    largest_mean_log,
    mean_logs,
    product_sums_init,
    product_sums_update,
)
from lightning_linf.functional.random import chunks
from lightning_linf.functional.random_vectors import cauchy_vector
from lightning_linf.functional.vector_shards import shards_of, whole_vectors
from lightning_linf.partition import Partition
from lightning_linf.probe.parameters import ParameterVector
from lightning_linf.probe.products import (
    HessianProducts,
    as_rows,
    check_products,
    check_symmetric,
    scale_of,
)


class UpperBound(NamedTuple):
    """An upper bound of H(Phi) for one partition, or an estimate of one."""

    value: float
    relative_error: float  # standard error over the value; 0 for a bound that is no estimate
    # (B,): what the rows of each block add, but for a common factor; None once it has been used
    block_parts: Tensor | None
    tensor_parts: Tensor  # (T,): what the rows of each parameter tensor add, likewise
    num_hvps: int
    batch_excess: float | None = None  # of "coordinate", with two halves of the batches


class WholeHessian(NamedTuple):
    """All entries of the Hessian, from as many products as there are parameters."""

    matrix: Tensor  # (d, d), on every rank
    batch_excess: float | None

    def times(self, vector: Tensor) -> Tensor:
        """Multiply with a vector (d,), or the shards of one."""
        return shards_of(self.matrix.mv(whole_vectors(vector)))


def whole_hessian(products: HessianProducts, vector: ParameterVector) -> WholeHessian:
    """Multiply the Hessian with every unit vector; it must be finite and symmetric."""
    unit = shards_of(torch.eye(vector.num_params, dtype=vector.dtype, device=vector.device))
    excess: float | None = None
    if products.first_half is None:
        matrix = whole_vectors(products.of_all(unit))
    else:
        both = whole_vectors(products.of_halves(unit))
        matrix = products.mean_of(both)
        norms = [float((part / scale_of(both)).abs().sum()) for part in (*both, matrix)]
        excess = excess_of_halves(norms, products.first_half)
    check_symmetric(matrix, products.symmetry_tolerance)
    return WholeHessian(matrix, excess)


def exact_upper_bound(
    hessian: WholeHessian, partition: Partition, tensor_sizes: Sequence[int]
) -> UpperBound:
    """Compute the bound from all entries of the Hessian."""
    scale = scale_of(hessian.matrix)  # squares of very small or large entries do not fit
    matrix = (hessian.matrix / scale).to(wide_dtype(hessian.matrix))
    blocks = partition.whole
    roots = blocks.sizes(matrix).sqrt()
    row_norms = blocks.block_sum(matrix.square()).sqrt() @ roots  # (d,): q_i
    parts = roots * blocks.block_sum(row_norms.square()).sqrt()
    tensors = torch.stack([part.sum() for part in row_norms.split_with_sizes(list(tensor_sizes))])
    value = float(parts.sum()) * float(scale)
    parts = shards_of(parts) if partition.is_identity else parts
    return UpperBound(value, 0.0, parts, tensors, len(matrix), hessian.batch_excess)


def estimated_upper_bound(
    products: HessianProducts,
    partition: Partition,
    vector: ParameterVector,
    *,
    num_probes: int,
    probes_per_pass: int,
    seed: int,
) -> UpperBound:
    """Estimate the bound from products with random probes.

    Vectors of d numbers beside those of a product: two of sums, one from the first probe to the
    second one, and two more if there are halves of the batches; all of them are
    :func:`~lightning_linf.functional.offload.set_aside`.
    """
    is_coordinate = partition.name == "coordinate"
    first_half = products.first_half if is_coordinate else None
    like, sizes = vector.like, vector.sizes

    def draw(probe: int) -> Tensor:
        if is_coordinate:
            return cauchy_vector(partition.num_params, seed=seed, probe=probe, like=like)
        return block_cauchy(partition, seed=seed, probe=probe, like=like)

    sums = product_sums_init(sizes, num_probes, like)
    sums = sums._replace(log_sums=set_aside(sums.log_sums))
    half_logs = None if first_half is None else set_aside(vector.zeros(2))
    first: Tensor | None = None
    for begin in range(0, num_probes, probes_per_pass):
        probes = range(begin, min(begin + probes_per_pass, num_probes))
        vectors = as_rows([draw(probe) for probe in probes])
        multiplied = _multiplied(products, vectors, half_logs)
        for probe, v, product in zip(probes, vectors, multiplied, strict=True):
            product_sums_update(sums, product, probe, sizes)
            if probe == 0:
                first = set_aside(product if len(probes) == 1 else product.clone())
            elif first is not None:
                check_products(
                    draw(0), bring_back(first, v.device), v, product, products.symmetry_tolerance
                )
                first = None
        del vectors, multiplied, v, product  # before the next ones are drawn
    sums = sums._replace(log_sums=bring_back(sums.log_sums, like.device))
    if not is_coordinate:
        bound = block_smoothness_compute(sums, sizes, partition, seed)
        error = float(bound.relative_error)
        return UpperBound(
            float(bound.value), error, bound.block_parts, bound.tensor_parts, num_probes
        )
    norm = cross_fitted_one_one_norm_compute(sums, sizes, seed)
    rows = _row_parts(sums)
    excess: float | None = None
    if half_logs is not None and first_half is not None:
        whole = sums.log_sums[0].add_(sums.log_sums[1])
        excess = batch_excess([*bring_back(half_logs, like.device), whole], num_probes, first_half)
    error = float(norm.relative_error)
    return UpperBound(float(norm.value), error, rows, norm.tensor_norms, num_probes, excess)


def _multiplied(products: HessianProducts, vectors: Tensor, half_logs: Tensor | None) -> Tensor:
    """Multiply vectors (c, d), and add the logarithms for halves of the batches, if kept (2, d)."""
    if half_logs is None:
        return products.of_all(vectors)
    both = products.of_halves(vectors)
    for logs, half in zip(half_logs, both, strict=True):
        for product in half:
            for part in chunks(len(product), product.device):
                logs[part] += product[part].abs().log_().to(logs.device)
    return products.mean_of(both)


def _row_parts(sums: ProductSums) -> Tensor:
    """1-norm of each row (d,), but for a common factor."""
    largest, rows = largest_mean_log(sums), torch.empty_like(sums.log_sums[0])
    for part in chunks(len(rows), rows.device):
        torch.exp(mean_logs(sums, part).sub_(largest), out=rows[part])
    return rows
