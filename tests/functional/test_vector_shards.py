"""Every number of shards of vectors, on several ranks, is that of whole vectors in one process."""

from functools import partial

import pytest
import torch
from support.dense_landscape import DenseLandscape, gloo_shards
from support.ranks import in_processes
from torch import nn

from lightning_linf import Partition
from lightning_linf.functional import block_smoothness as block_smoothness_module
from lightning_linf.functional import surrogates
from lightning_linf.functional.adaptive_smoothness import adaptive_ascent
from lightning_linf.functional.batch_excess import batch_excess
from lightning_linf.functional.block_smoothness import block_cauchy, block_smoothness_compute
from lightning_linf.functional.blocks import block_norm, dual_block_norm, dual_direction
from lightning_linf.functional.finite import all_finite
from lightning_linf.functional.heterogeneity import each_and_whole
from lightning_linf.functional.heterogeneity_sums import heterogeneity_update, over_shards
from lightning_linf.functional.in_pieces import largest_magnitude
from lightning_linf.functional.lambda_max import lambda_max, lanczos
from lightning_linf.functional.noise import noise_compute
from lightning_linf.functional.noise_sums import noise_init, noise_update
from lightning_linf.functional.one_one_norm import cross_fitted_one_one_norm_compute
from lightning_linf.functional.operator_norm import operator_norm
from lightning_linf.functional.product_sums import product_sums_init, product_sums_update
from lightning_linf.functional.r_squared import between_within
from lightning_linf.functional.random_vectors import cauchy_vector, normal_vector
from lightning_linf.functional.spectral import (
    MatrixSplit,
    spectral_ascent,
    spectral_dual,
    spectral_norm,
)
from lightning_linf.functional.vector_shards import (
    VectorShards,
    any_nonzero,
    dot,
    num_here,
    shards_of,
    sharing_vectors,
    sizes_here,
    two_norm,
    whole_vectors,
)
from lightning_linf.probe.last_step import measure_last_step
from lightning_linf.probe.measure import measure_landscape
from lightning_linf.probe.noise import measure_noise
from lightning_linf.probe.partitions import choose_partitions, on_shards
from lightning_linf.probe.products import HessianProducts

NAMES = ("coordinate", "row", "column", "tensor", "module", "head", "global")
SOME = ("coordinate", "head", "global", "spanning", "backwards")  # for what takes longer


class Network(nn.Module):
    """Tensors that do not divide by the number of ranks, some with fewer entries than ranks."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.scale = nn.Parameter(torch.zeros(()))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.wide = nn.Linear(13, 11)
        self.three = nn.Parameter(torch.zeros(3, 2, 5))
        self.pair = nn.Parameter(torch.zeros(2))


def partitions_of(module):
    """Partitions by structure, one whose blocks span tensors, and two of any sets of entries."""

    def scattered(name, p):
        return torch.arange(p.numel()).reshape(p.shape) % 3

    def backwards(name, p):
        return torch.arange(p.numel()).flip(0).reshape(p.shape)

    named = choose_partitions(module, NAMES)
    return [
        *named,
        Partition.by_function(module, lambda name, p: len(p.shape), name="spanning"),
        Partition.by_function(module, scattered, name="scattered"),
        Partition.by_function(module, backwards, name="backwards"),
    ]


def problem(dtype):
    """Module, Hessians (m, d, d), gradients (m, d) and weights of five batches."""
    torch.manual_seed(3)
    module = Network().to(dtype)
    dim = sum(p.numel() for p in module.parameters())
    hessians = torch.randn(5, dim, dim, dtype=torch.float64) / dim**0.5
    sizes = torch.rand(dim, dtype=torch.float64).mul(4).exp()  # as rows of Hessians differ
    hessians = (hessians + hessians.mT) * sizes.sqrt() * sizes.sqrt()[:, None]
    gradients = torch.randn(5, dim, dtype=torch.float64) + torch.randn(dim, dtype=torch.float64)
    gradients *= torch.linspace(0.0, 4.0, dim, dtype=torch.float64).exp()  # so that blocks differ
    gradients[:, 20:24] = 0.0
    return module, hessians.to(dtype), gradients.to(dtype), [1.0, 2.0, 1.0, 3.0, 1.0]


class Given:
    """What estimators are tried on: vectors that are whole, or shards."""

    def __init__(self, dtype):
        self.module, hessians, gradients, self.weights = problem(dtype)
        self.matrix = hessians.mean(dim=0)
        self.sizes = [p.numel() for p in self.module.parameters()]
        self.dim = sum(self.sizes)
        self.partitions = on_shards(partitions_of(self.module), torch.device("cpu"))
        self.some = [p for p in self.partitions if p.name in SOME]
        self.gradients = [shards_of(gradient).clone() for gradient in gradients]
        self.gradient = self.gradients[0]
        self.like = gradients.new_empty(0)
        self.landscape = DenseLandscape(self.module, hessians, gradients, self.weights)
        self.split = MatrixSplit(
            tuple(p.shape for p in self.module.parameters()),
            tuple(p.ndim == 2 and p.numel() > 0 for p in self.module.parameters()),
        )

    def hvp(self, vector):
        return shards_of(self.matrix @ whole_vectors(vector))

    def by_block(self, values, partition):
        """Numbers by block, all of them."""
        return whole_vectors(values) if partition.is_identity else values

    def sums(self, draw):
        sums = product_sums_init(self.sizes, 6, self.like)
        for probe in range(6):
            product_sums_update(sums, self.hvp(draw(probe)), probe, self.sizes)
        return sums


def vectors(given):
    u, v = given.gradients[:2]
    yield "dot", dot(u, v)
    yield "norm", two_norm(u)
    yield "largest", largest_magnitude(u)
    yield "normal", whole_vectors(normal_vector(given.dim, seed=5, like=given.like))
    yield "cauchy", whole_vectors(cauchy_vector(given.dim, seed=5, probe=2, like=given.like))
    nothing = torch.zeros_like(u)
    yield "is zero", torch.tensor([any_nonzero(nothing), any_nonzero(u)])
    yield "is finite", torch.tensor([bool(all_finite(u)), bool(all_finite(u / nothing))])
    shares = [whole_vectors(part) for part in (u.log(), u / nothing)]
    yield "largest of NaN", torch.stack([largest_magnitude(u.log()), shares[0].isnan().sum()])


def blocks(given):
    for partition in given.partitions:
        u = given.gradient
        numbers = partition.block_sum(u)
        yield f"{partition.name}: sum", given.by_block(numbers, partition)
        yield f"{partition.name}: sizes", given.by_block(partition.sizes(u), partition)
        yield f"{partition.name}: rows", whole_vectors(partition.expand(numbers))
        rows = partition.block_sum(torch.stack([u, 2 * u]))
        yield f"{partition.name}: two rows", given.by_block(rows, partition)
        yield f"{partition.name}: norm", block_norm(u, partition)
        yield f"{partition.name}: dual norm", dual_block_norm(u, partition)
        yield f"{partition.name}: direction", whole_vectors(dual_direction(u, partition))
        yield f"{partition.name}: R^2", between_within(u, partition).r_squared
        probe = block_cauchy(partition, seed=3, probe=1, like=given.like)
        yield f"{partition.name}: probe", whole_vectors(probe)
        refined = [partition.refines(other) for other in given.partitions]
        yield f"{partition.name}: refines", torch.tensor(refined)


def ascents(given):
    start = normal_vector(given.dim, seed=1, like=given.like)
    found = lambda_max(given.hvp, start, max_hvps=12)
    yield "lambda_max", torch.tensor([found.value, found.residual])
    edge = lanczos(given.hvp, start, max_hvps=9, tol=0.0, positive_end=True, num_kept=4)
    yield "positive end", torch.tensor([edge.value, edge.upper])
    if given.like.dtype == torch.float64:  # otherwise the basis is in bfloat16
        yield "Ritz vector", whole_vectors(edge.ritz_vector(0)).abs()
    for partition in given.some:
        columns = [normal_vector(given.dim, seed=k, like=given.like) for k in range(3)]
        ascent = adaptive_ascent(given.hvp, columns, partition, max_hvps=9, tol=0.0)
        yield f"{partition.name}: ascent", torch.tensor(ascent.value)
        yield f"{partition.name}: columns", whole_vectors(torch.stack(ascent.columns))
        norm = operator_norm(given.hvp, start, partition, max_hvps=32, seed=2)
        ends = [norm.lower, norm.upper, norm.adaptive_lower, norm.upper_residual]
        yield f"{partition.name}: operator norm", torch.tensor(ends)
        yield f"{partition.name}: shares", given.by_block(norm.shares, partition)
        yield f"{partition.name}: worst step", whole_vectors(norm.direction)
    again = operator_norm(given.hvp, start, partition, shares=norm.shares, max_hvps=60)
    yield "two rounds", torch.tensor([again.lower, again.upper])


def estimates(given):
    draw = partial(cauchy_vector, given.dim, seed=4, like=given.like)
    sums = given.sums(lambda probe: draw(probe=probe))
    yield "run means", sums.run_log_means
    norm = cross_fitted_one_one_norm_compute(sums, given.sizes, 4)
    yield "(1,1)-norm", torch.stack([norm.value, norm.relative_error])
    yield "(1,1)-norm of tensors", norm.tensor_norms
    logs = [sums.log_sums[0], sums.log_sums[1], sums.log_sums.sum(dim=0) / 2]
    yield "batch excess", torch.tensor(batch_excess(logs, 3, 0.4))
    for partition in given.some:
        draw_blocks = partial(block_cauchy, partition, seed=4, like=given.like)
        sums = given.sums(lambda probe, draw=draw_blocks: draw(probe=probe))
        bound = block_smoothness_compute(sums, given.sizes, partition, 4)
        yield f"{partition.name}: bound", torch.stack([bound.value, bound.relative_error])
        yield f"{partition.name}: of blocks", given.by_block(bound.block_parts, partition)
        yield f"{partition.name}: of tensors", bound.tensor_parts


def estimates_in_groups(given):
    """The same where several coordinates share the multipliers of surrogates."""
    modules = surrogates, block_smoothness_module
    before = surrogates.MAX_GROUPS
    try:
        for module in modules:
            module.MAX_GROUPS = 16
        yield from ((f"in groups: {name}", value) for name, value in estimates(given))
    finally:
        for module in modules:
            module.MAX_GROUPS = before


def of_gradients(given):
    sums = noise_init(num_here(given.dim), given.like)
    for gradient, weight in zip(given.gradients, given.weights, strict=True):
        noise_update(sums, gradient, weight)
    noise = noise_compute(sums, given.sizes, {p.name: p for p in given.partitions})
    yield "trace", torch.stack([noise.trace, noise.trace_relative_error, noise.noise_scale])
    yield "trace of tensors", noise.tensor_trace
    yield "signal of tensors", noise.tensor_signal_to_noise
    for name, value in noise.block_noise.items():
        yield f"{name}: noise", torch.stack([value, *noise.block_noise_scale[name]])
    parts = given.gradient.split_with_sizes(sizes_here(given.sizes))
    each, whole = each_and_whole(over_shards(heterogeneity_update(parts)))
    for field, of_tensors, of_all in zip(each._fields, each, whole, strict=True):
        yield f"{field} of tensors", of_tensors
        yield field, of_all


def spectral(given):
    dual = spectral_dual(given.gradient, given.split)
    yield "spectral dual norm", dual.norm
    yield "spectral direction", whole_vectors(dual.direction)
    yield "spectral norm", spectral_norm(given.gradient, given.split)
    ascent = spectral_ascent(given.hvp, given.gradient, given.split, max_hvps=4)
    yield "spectral ascent", torch.tensor(ascent.lower)


def reports(given):
    landscape, partitions = given.landscape, [p.whole for p in given.some]
    noise = measure_noise(landscape, partitions)
    # With 300 probes all entries of the Hessian are measured.
    for num_probes, batches in ((4, "several"), (300, "several"), (4, "one")):
        if batches == "one":
            landscape = DenseLandscape(
                given.module, given.matrix[None], landscape.gradients[:1], [1.0]
            )
            landscape.first_half = lambda: None
        report = measure_landscape(
            landscape, partitions, matrices=given.split, num_probes=num_probes, noise=noise,
            last_step=given.gradients[1],
        )  # fmt: skip
        for name, value in numbers_in(report.to_dict()):
            if not name.endswith("seconds"):
                yield f"{num_probes} probes, {batches}: {name}", torch.tensor(value)
    hessian = HessianProducts(landscape, None)
    of_all, each = measure_last_step(*given.gradients[:2], landscape.parameters, hessian)
    yield "last step", torch.tensor([[s.slope, s.curvature] for s in (of_all, *each.values())])


def numbers_in(value, name=""):
    """Every number of nested dictionaries, by the path to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_in(inner, f"{name}/{key}")
    elif isinstance(value, (int, float)):
        yield name, float(value)


QUICK = (vectors, blocks, of_gradients, spectral)
SLOW = (ascents, estimates, estimates_in_groups, reports)
# Of sums; iterations of products amplify what is rounded.
TOLERANCES = {torch.float64: (1e-12, 1e-8), torch.float32: (1e-6, 1e-3)}
ITERATIONS = {ascents, reports, spectral}


def numbers(parts, dtypes):
    results = {}
    for dtype in dtypes:
        given = Given(dtype)
        results |= {(part, dtype): dict(part(given)) for part in parts}
    return results


def on_rank(rank, parts, dtypes):
    sizes = [p.numel() for p in Network().parameters()]
    with sharing_vectors(gloo_shards(sizes, rank)):
        return numbers(parts, dtypes)


def assert_equal_to_one_process(num_ranks, parts, tmp_path, dtypes=tuple(TOLERANCES)):
    whole = numbers(parts, dtypes)
    measure = partial(on_rank, parts=parts, dtypes=dtypes)
    for of_rank in in_processes(measure, tmp_path, num_ranks):
        if isinstance(of_rank, Exception):
            raise of_rank
        for (part, dtype), expected in whole.items():
            got = of_rank[part, dtype]
            assert got.keys() == expected.keys()
            rtol = TOLERANCES[dtype][part in ITERATIONS]
            for name, value in got.items():
                finite = expected[name].double().nan_to_num(posinf=0.0, neginf=0.0)
                scale = float(finite.abs().max()) if value.numel() else 0.0  # of a vector's entries
                torch.testing.assert_close(
                    value,
                    expected[name],
                    rtol=rtol,
                    atol=rtol * scale,
                    equal_nan=True,
                    msg=f"{part.__name__}, {dtype}, {name}: {value} for {expected[name]}",
                )


def test_sizes_of_other_tensors_are_refused():
    shards = VectorShards([4, 3], 0, 2, lambda values: values, lambda values: values)
    with sharing_vectors(shards):
        assert sizes_here([4, 3]) == [2, 2]
        with pytest.raises(ValueError, match="2 tensors that are shared, 7 entries, got 1 sizes"):
            sizes_here([7])


def test_sums_of_shards_are_those_of_one_process(tmp_path):
    assert_equal_to_one_process(2, QUICK, tmp_path)


@pytest.mark.slow
def test_estimates_and_reports_of_shards_are_those_of_one_process(tmp_path):
    assert_equal_to_one_process(2, SLOW, tmp_path)


@pytest.mark.slow
def test_numbers_of_four_ranks_are_those_of_one_process(tmp_path):
    parts = (*QUICK, estimates_in_groups, reports)
    assert_equal_to_one_process(4, parts, tmp_path, [torch.float64])
