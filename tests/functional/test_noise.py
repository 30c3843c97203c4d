"""Gradient noise against the exact covariance of the gradients of a small data set."""

import math

import pytest
import torch
from torch import nn

from lightning_linf.functional import LabelledBlocks, dual_block_norm, dual_direction, noise
from lightning_linf.functional.noise import noise_compute
from lightning_linf.functional.noise_sums import (
    NoiseSums,
    noise_init,
    noise_merge,
    noise_update,
)

NUM_STANDARD_ERRORS = 5
NUM_GROUPS, REPETITIONS = 40, 500


def grouped(num_params, num_blocks):
    """Blocks of the same size, in order."""
    labels = torch.arange(num_blocks).repeat_interleave(num_params // num_blocks)
    return LabelledBlocks(labels, f"{num_blocks} blocks")


def gradients_of_samples(num_samples=12):
    """Per-sample gradients of a tanh network, (n, d), d = 16, and the sizes of its tensors."""
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.Tanh(), nn.Linear(4, 2, bias=False))
    model = model.double()
    x, y = torch.randn(num_samples, 2).double(), torch.randn(num_samples, 2).double()
    rows = []
    for sample, target in zip(x, y, strict=True):
        loss = (model(sample) - target).square().sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    return torch.stack(rows), [p.numel() for p in model.parameters()]


def draw(samples, weights, repetitions):
    """Mean gradients of microbatches drawn with replacement. Shape: (K, repetitions * d)."""
    rows = []
    for weight in weights:
        chosen = torch.randint(len(samples), (repetitions, weight))
        rows.append(samples[chosen].mean(dim=1).reshape(-1))
    return torch.stack(rows)


def partitions_of(dim, repetitions):
    """Of one repetition: coordinate, 4 blocks, global. What they sum over repetitions adds up."""
    return {
        name: grouped(dim * repetitions, num_blocks * repetitions)
        for name, num_blocks in (("coordinate", dim), ("blocks", 4), ("global", 1))
    }


def assert_within_standard_errors(values, exact, *, remainder=0.0):
    """Compare the mean of groups (G, ...) with the exact value (...)."""
    error = values.std(dim=0) / len(values) ** 0.5
    difference = (values.mean(dim=0) - exact).abs()
    assert (difference < NUM_STANDARD_ERRORS * error + remainder * exact).all(), (
        difference / error,
        difference / exact,
    )


@pytest.mark.parametrize(
    ("weights", "remainder"),
    # of block noise: what is left without the term in 1/n, by 100,000 repetitions; that term is
    # 0.025 at 12 microbatches and 0.08 at 4 for one entry per block
    [([4] * 12, 2.5e-3), ([1, 8, 2, 4, 16, 3, 5, 2, 9, 4, 7, 6], 3e-3), ([4] * 4, 2.2e-2)],
    ids=["equal weights", "unequal weights", "few microbatches"],
)
def test_estimates_are_unbiased(weights, remainder):
    samples, sizes = gradients_of_samples()
    dim = samples.shape[1]
    mean, variances = samples.mean(dim=0), samples.var(dim=0, correction=0)
    groups = [
        noise(
            # repetitions stand side by side, as coordinates of one long gradient
            draw(samples, weights, REPETITIONS),
            weights,
            sizes=sizes * REPETITIONS,
            partitions=partitions_of(dim, REPETITIONS),
        )
        for _ in range(NUM_GROUPS)
    ]
    traces = torch.stack([g.trace for g in groups]) / REPETITIONS
    assert_within_standard_errors(traces, variances.sum())
    signals = torch.stack([g.trace / g.noise_scale for g in groups]) / REPETITIONS
    assert_within_standard_errors(signals, mean.square().sum())
    tensor_traces = torch.stack([g.tensor_trace.view(REPETITIONS, -1).mean(0) for g in groups])
    exact = torch.stack([part.sum() for part in variances.split(sizes)])
    assert_within_standard_errors(tensor_traces, exact)

    for name, blocks in partitions_of(dim, 1).items():
        block_size = blocks.sizes(variances)
        exact = (block_size * (blocks.block_sum(variances) / block_size).sqrt()).sum()
        values = torch.stack([g.block_noise[name] for g in groups]) / REPETITIONS
        assert_within_standard_errors(values, exact, remainder=remainder)


@pytest.mark.parametrize("num_microbatches", [3, 4, 9])
def test_bias_of_a_standard_deviation_is_that_of_two_halves(num_microbatches):
    """For normal gradients the mean of every root is known, and so is what the halves leave."""

    def shortfall(n):  # E of the root of chi-squared over its n degrees of freedom
        return math.sqrt(2 / n) * math.exp(math.lgamma((n + 1) / 2) - math.lgamma(n / 2))

    total = num_microbatches - 1
    a, b = (total + 1) // 2, total // 2
    exact = 2 * shortfall(total) - (a * shortfall(a) + b * shortfall(b)) / total
    assert 1 - exact < (1 - shortfall(total)) / 4
    dim = 20_000
    gradients = torch.randn(num_microbatches, dim, dtype=torch.float64)
    result = noise(gradients, partitions={"coordinate": grouped(dim, dim)})
    # the s.d. of one term is below 2 (1 / sqrt(2 n)) each for whole and halves
    standard_error = 2 / (2 * b * dim) ** 0.5
    measured = float(result.block_noise["coordinate"] / dim)
    assert abs(measured - exact) < NUM_STANDARD_ERRORS * standard_error


@pytest.mark.slow
def test_relative_error_is_that_of_the_trace():
    dim, num_microbatches, repetitions = 5, 30, 1_000
    gradients = torch.randn(repetitions, num_microbatches, dim, dtype=torch.float64)
    results = [noise(g) for g in gradients]
    traces = torch.stack([r.trace for r in results])
    stated = torch.stack([(r.trace * r.trace_relative_error).square() for r in results])
    # the s.d. of a variance from 1,000 values is 4.5 % of it
    torch.testing.assert_close(stated.mean(), traces.var(), rtol=5 * 0.045, atol=0.0)


def test_two_microbatches_by_hand():
    gradients = torch.tensor([[1.0, 0.0, 2.0, 0.0], [5.0, 0.0, 2.0, 3.0]], dtype=torch.float64)
    result = noise(
        gradients,
        [1.0, 3.0],
        sizes=[3, 1],
        partitions={"coordinate": grouped(4, 4), "global": grouped(4, 1)},
    )
    # z = sqrt(3/4) (4, 0, 0, 3); mean (4, 0, 2, 2.25)
    assert float(result.trace) == pytest.approx(0.75 * 25)
    assert float(result.noise_scale) == pytest.approx(18.75 / (25.0625 - 18.75 / 4))
    assert float(result.block_noise["coordinate"]) == pytest.approx(math.sqrt(0.75) * 7)
    assert float(result.block_noise["global"]) == pytest.approx(2 * math.sqrt(0.75) * 5)
    torch.testing.assert_close(result.tensor_trace, torch.tensor([12.0, 6.75]).double())
    torch.testing.assert_close(
        result.tensor_signal_to_noise,
        torch.tensor([(20 - 3) / 3, (5.0625 - 1.6875) / 1.6875]).double(),
    )
    assert result.trace_relative_error.isnan()


def dual_norm_ends(gradients, weights, blocks):
    """Both ends of the dual norm, as the definition is written."""
    column = torch.tensor(weights, dtype=torch.float64)[:, None]

    def mean(rows):
        return (column[rows] * gradients[rows]).sum(dim=0) / column[rows].sum()

    first, second = mean(slice(0, None, 2)), mean(slice(1, None, 2))
    lower = (dual_direction(first, blocks) @ second + dual_direction(second, blocks) @ first) / 2
    return float(lower), float(dual_block_norm(mean(slice(None)), blocks))


@pytest.mark.parametrize("num_blocks", [12, 3, 1])
def test_ends_of_noise_scales_are_those_of_the_definition(num_blocks):
    gradients = torch.randn(5, 12, dtype=torch.float64) + torch.linspace(0, 3, 12).double()
    weights, blocks = [1.0, 4.0, 2.0, 0.5, 3.0], grouped(12, num_blocks)
    result = noise(gradients, weights, partitions={"some": blocks})
    lower, upper = dual_norm_ends(gradients, weights, blocks)
    deviations = float(result.block_noise["some"])
    ends = [float(end) for end in result.block_noise_scale["some"]]
    assert ends == pytest.approx([(deviations / upper) ** 2, (deviations / lower) ** 2])


@pytest.mark.parametrize("loudness", [0.1, 1.0, 10.0])  # of the gradient, to one sample's noise
@pytest.mark.parametrize("num_blocks", [600, 60, 1])
def test_ends_of_noise_scales_bracket_the_exact_one(num_blocks, loudness):
    dim, blocks = 600, grouped(600, num_blocks)
    sigma = torch.randn(dim).double().exp()
    exact_gradient = loudness * sigma * (1.5 * torch.randn(dim).double()).exp()
    exact_gradient *= torch.randn(dim).sign()
    exact_norm = float(dual_block_norm(exact_gradient, blocks))
    norms = []
    for _ in range(200):
        gradients = exact_gradient + sigma * torch.randn(8, dim).double()
        result = noise(gradients, partitions={"some": blocks})
        ends = torch.stack(result.block_noise_scale["some"]).sqrt()
        norms.append(result.block_noise["some"] / ends.flip(0))  # lower and upper end
    norms = torch.stack(norms)
    # inf where the lower end is not positive: that it is rare keeps the mean from being biased
    assert norms.isfinite().all()
    error = norms.std(dim=0) / len(norms) ** 0.5
    assert norms[:, 0].mean() <= exact_norm + NUM_STANDARD_ERRORS * error[0]
    assert norms[:, 1].mean() >= exact_norm - NUM_STANDARD_ERRORS * error[1]
    if loudness == 10.0:
        torch.testing.assert_close(norms.mean(dim=0) / exact_norm, torch.ones(2).double(),
                                   rtol=0.02, atol=0)  # fmt: skip


def test_ends_of_noise_scales_use_ranks_of_one_microbatch_in_turn():
    gradients = torch.randn(2, 6, dtype=torch.float64) + 2
    parts = []
    for turn, gradient in enumerate(gradients):
        parts.append(noise_init(6, gradient, turn))
        noise_update(parts[-1], gradient, 3.0)
    partitions = {"some": grouped(6, 2)}
    merged = noise_compute(Ranks(parts).merge()[0], [6], partitions).block_noise_scale["some"]
    alone = noise(gradients, [3.0, 3.0], partitions=partitions).block_noise_scale["some"]
    torch.testing.assert_close(merged, alone)
    # Of ranks that all have the first half, no lower end of the dual norm is known.
    parts = [noise_init(6, gradients) for _ in gradients]
    for part, gradient in zip(parts, gradients, strict=True):
        noise_update(part, gradient, 3.0)
    lower, upper = noise_compute(Ranks(parts).merge()[0], [6], partitions).block_noise_scale["some"]
    torch.testing.assert_close(lower, alone[0])
    assert upper == math.inf


def test_noise_that_hides_the_gradient_has_an_infinite_scale():
    gradients = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    result = noise(gradients, partitions={"coordinate": grouped(2, 2)})
    assert result.noise_scale == math.inf
    assert result.block_noise_scale["coordinate"] == (math.inf, math.inf)
    assert result.tensor_signal_to_noise.tolist() == [0.0]


def test_equal_gradients_have_no_noise():
    result = noise(torch.ones(4, 3), [1.0, 2.0, 3.0, 4.0])
    assert result.trace == 0.0
    assert result.noise_scale == 0.0
    assert result.tensor_signal_to_noise == math.inf


def test_sums_are_those_of_the_definition():
    gradients, weights = torch.randn(7, 5, dtype=torch.float64), [1.0, 4.0, 2.0, 0.5, 3.0, 1.0, 9.0]
    sums = sums_of(gradients, weights)
    column = torch.tensor(weights, dtype=torch.float64)[:, None]
    mean = (column * gradients).sum(dim=0) / column.sum()
    torch.testing.assert_close(sums.mean * sums.scale, mean)
    torch.testing.assert_close(
        sums.squares.sum(dim=0) * sums.scale**2, (column * (gradients - mean).square()).sum(dim=0)
    )
    assert sums.counts.tolist() == [3, 3]
    assert float(sums.weight) == 20.5
    moments = [6.0, float(sums.squares.sum() * sums.scale**2)]
    assert sums.norm_moments[:2].tolist() == pytest.approx(moments)


def sums_of(gradients, weights):
    sums = noise_init(gradients.shape[1], gradients)
    for gradient, weight in zip(gradients, weights, strict=True):
        noise_update(sums, gradient, weight)
    return sums


class Ranks:
    """A reduction over sums that lie side by side, by running every rank until it asks for it."""

    def __init__(self, parts):
        self.parts = parts

    def merge(self):
        """Give every rank's merged sums: pass n knows the results of the first n reductions."""
        known = []
        while True:
            asked = []
            copies = [NoiseSums(*(value.clone() for value in part)) for part in self.parts]
            merged = [noise_merge(part, self.reducer(known, asked)) for part in copies]
            if not asked:
                return merged
            known.append(torch.stack(asked).sum(dim=0))

    def reducer(self, known, asked):
        answers = iter(known)
        stopped = []

        def reduce(tensor):
            answer = next(answers, None)
            if answer is None and not stopped:
                stopped.append(True)
                asked.append(tensor.clone())
            return tensor if answer is None else answer.clone()

        return reduce


@pytest.mark.parametrize("splits", [(4, 4), (1, 6), (3, 3, 2), (2, 0, 5), (1, 1, 1), (4, 0, 0)])
def test_merged_ranks_equal_one_process(splits):
    gradients = torch.randn(sum(splits), 6, dtype=torch.float64)
    weights = torch.arange(1.0, 1.0 + sum(splits)).tolist()
    parts, start = [], 0
    for length in splits:
        stop = start + length
        parts.append(sums_of(gradients[start:stop], weights[start:stop]))
        start = stop
    merged, whole = Ranks(parts).merge(), sums_of(gradients, weights)
    for one in merged:
        torch.testing.assert_close(one.mean * one.scale, whole.mean * whole.scale)
        squares, expected = (sums.squares.sum(dim=0) * sums.scale**2 for sums in (one, whole))
        torch.testing.assert_close(squares, expected)
        assert one.weight == whole.weight
        assert one.counts.sum() == whole.counts.sum() == sum(splits) - 1
        result, reference = (noise_compute(sums, [6], {}) for sums in (one, whole))
        torch.testing.assert_close(result.trace, reference.trace)
        torch.testing.assert_close(result.noise_scale, reference.noise_scale)
        for value, other in zip(one, merged[0], strict=True):
            assert torch.equal(value, other)


@pytest.mark.slow
@pytest.mark.parametrize("splits", [(1,) * 8, (2,) * 4])
def test_relative_error_over_ranks_is_that_of_the_trace(splits):
    scale = torch.linspace(0.2, 2.0, 30, dtype=torch.float64)
    traces, stated = [], []
    for _ in range(300):
        parts = [sums_of(scale * torch.randn(n, 30).double(), [1.0] * n) for n in splits]
        result = noise_compute(Ranks(parts).merge()[0], [30], {})
        traces.append(float(result.trace))
        stated.append(float(result.trace_relative_error))
    spread = float(torch.tensor(traces).std() / scale.square().sum())
    # each stated error is itself known to a quarter, their mean to 2 %, the spread to 4 %
    assert sum(stated) / len(stated) == pytest.approx(spread, rel=0.25)


def test_both_halves_of_merged_ranks_are_unbiased():
    dim, weights = 4_000, [1.0, 4.0]
    parts = []
    for _ in range(3):
        gradients = torch.randn(2, dim, dtype=torch.float64)
        gradients /= torch.tensor(weights, dtype=torch.float64)[:, None].sqrt()
        parts.append(sums_of(gradients, weights))
    merged = Ranks(parts).merge()[0]
    assert merged.counts.tolist() == [3, 2]  # one in each rank, two between ranks
    variances = merged.scale**2 * merged.squares.mean(dim=1) / merged.counts
    for variance, count in zip(variances, merged.counts, strict=True):
        assert abs(float(variance) - 1.0) < NUM_STANDARD_ERRORS * (2 / (int(count) * dim)) ** 0.5


def compute(gradients, weights):
    dim = gradients.shape[1]
    partitions = {"blocks": grouped(dim, 2), "coordinate": grouped(dim, dim)}
    return noise(gradients, weights, sizes=[2, dim - 2], partitions=partitions)


def test_scaling_of_gradients_and_weights_is_followed_exactly():
    gradients, weights = torch.randn(6, 8, dtype=torch.float64), [1.0, 2.0, 3.0, 1.0, 5.0, 2.0]
    one = compute(gradients, weights)
    # powers of two, of which the square root is one, too: no rounding
    louder = compute(-4 * gradients, weights)
    assert louder.trace == 16 * one.trace
    assert louder.noise_scale == one.noise_scale
    assert louder.trace_relative_error == one.trace_relative_error
    assert torch.equal(louder.tensor_signal_to_noise, one.tensor_signal_to_noise)
    larger = compute(gradients, [4 * w for w in weights])
    assert larger.trace == 4 * one.trace
    assert larger.noise_scale == 4 * one.noise_scale
    assert torch.equal(larger.tensor_signal_to_noise, one.tensor_signal_to_noise)
    for name, value in one.block_noise.items():
        assert louder.block_noise[name] == 4 * value
        assert larger.block_noise[name] == 2 * value


def test_narrow_gradients_are_summed_in_float32():
    gradients = torch.randn(5, 10).bfloat16()
    assert noise_init(10, gradients).mean.dtype == torch.float32
    result, reference = noise(gradients), noise(gradients.double())
    torch.testing.assert_close(result.trace, reference.trace, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradients": torch.ones(3)}, r"shape \(K, d\), got \(3,\)"),
        ({"gradients": torch.ones(1, 3)}, "at least 2 microbatches, got 1"),
        ({"gradients": torch.ones(0, 3)}, "at least 2 microbatches, got 0"),
        ({"gradients": torch.full((2, 3), math.nan)}, "finite gradient, got inf or NaN"),
        ({"gradients": torch.ones(2, 3), "weights": [1.0]}, "each of 2 microbatches, got 1"),
        ({"gradients": torch.ones(2, 3), "weights": [1.0, 0.0]}, "`weight` > 0.* got 0.0"),
        ({"gradients": torch.ones(2, 3), "weights": [math.inf, 1.0]}, "`weight` > 0.* got inf"),
        ({"gradients": torch.ones(2, 3), "sizes": [2, 2]}, "add up to 3, got 4"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, message):
    with pytest.raises(ValueError, match=f"noise: expected .*{message}"):
        noise(**arguments)


def test_a_gradient_of_another_length_is_refused():
    sums = noise_init(3, torch.zeros(()))
    with pytest.raises(ValueError, match=r"noise: expected a gradient of shape \(3,\), got \(4,\)"):
        noise_update(sums, torch.ones(4), 1.0)


def test_a_partition_of_another_vector_is_refused():
    with pytest.raises(ValueError, match="partitions of 3 coordinates, got '2 blocks' of 4"):
        noise(torch.randn(3, 3), partitions={"blocks": grouped(4, 2)})


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_float32_noise_follows_the_scale_of_the_loss(scale):
    gradients = torch.randn(6, 40) + 1
    halves = {"halves": grouped(40, 2), "coordinate": grouped(40, 40)}
    one = noise(gradients, partitions=halves, sizes=[10, 30])
    other = noise(scale * gradients, partitions=halves, sizes=[10, 30])
    torch.testing.assert_close(other.noise_scale, one.noise_scale, rtol=1e-5, atol=0)
    torch.testing.assert_close(other.trace, scale**2 * one.trace, rtol=1e-5, atol=0)
    for value, reference in (
        (other.trace_relative_error, one.trace_relative_error),
        (other.tensor_signal_to_noise, one.tensor_signal_to_noise),
        *((other.block_noise[name], scale * one.block_noise[name]) for name in halves),
    ):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=0)


@pytest.mark.parametrize("scales", [(1e-30, 1e-30), (1e30, 1e30), (1.0, 64.0)])
def test_ranks_of_other_scales_merge(scales):
    gradients = [scale * torch.randn(3, 20) for scale in scales]
    parts = [sums_of(part, [1.0, 2.0, 1.0]) for part in gradients]
    merged = noise_compute(Ranks(parts).merge()[1], [20], {})
    whole = noise_compute(sums_of(torch.cat(gradients), [1.0, 2.0, 1.0] * 2), [20], {})
    torch.testing.assert_close(merged.trace, whole.trace, rtol=1e-5, atol=0)


def test_gradients_that_begin_with_zeros_are_measured():
    gradients = torch.cat([torch.zeros(2, 30), 1e-30 * torch.randn(4, 30)])
    trace = noise(gradients).trace
    exact = gradients.double().var(dim=0).sum()
    torch.testing.assert_close(trace, exact, rtol=1e-5, atol=0)
