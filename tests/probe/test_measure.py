"""The report of one measurement against NumPy and dense Hessians, and what is refused."""

import numpy as np
import pytest
import torch
from support import networks
from support.landscapes import (
    DIM,
    EXACT,
    NAMES,
    Dense,
    Quadratic,
    check_brackets,
    gradient_of,
    indefinite,
    measure,
    normal,
    random_net,
)
from torch import nn

from lightning_linf.functional import noise as noise_of
from lightning_linf.partition import Partition
from lightning_linf.probe import ProbeError, measure_geometry


def test_gradient_quantities_equal_those_of_numpy():
    module, batch, loss, gradient, _ = random_net(6)
    report = measure_geometry(module, [batch], loss=loss, partitions=NAMES)
    g = gradient.numpy()
    np.testing.assert_allclose(report.density, np.abs(g).sum() ** 2 / (g.size * (g**2).sum()))
    names = [name for name, _ in module.named_parameters()]
    assert list(report.per_tensor) == names
    parts = np.split(g, np.cumsum([p.numel() for p in module.parameters()])[:-1])
    for name, part in zip(names, parts, strict=True):
        tensor = report.per_tensor[name]
        assert tensor["num_params"] == part.size
        energy = (part**2).sum()
        np.testing.assert_allclose(
            tensor["density"], np.abs(part).sum() ** 2 / (part.size * energy), rtol=1e-6
        )
        a = np.sort(np.abs(part))
        rank = np.arange(1, a.size + 1)
        gini = ((2 * rank - a.size - 1) * a).sum() / (a.size * a.sum())
        np.testing.assert_allclose(tensor["gini"], gini, atol=0.02)  # from a histogram
    shares = [tensor["one_one_norm_share"] for tensor in report.per_tensor.values()]
    np.testing.assert_allclose(sum(shares), 1.0, rtol=1e-9)
    logs = np.log(np.abs(g))
    for name in NAMES:
        partition = Partition.of(module, name)
        label = partition.expand(torch.arange(partition.num_blocks)).numpy()
        assert report.r_squared[name] <= 1.0
        blocks = [logs[label == b] for b in np.unique(label)]
        norms = [np.sqrt(b.sum() * b.size) for b in (g[label == v] ** 2 for v in np.unique(label))]
        np.testing.assert_allclose(report.dual_norm[name], sum(norms), rtol=1e-9)
        if name in ("coordinate", "global"):
            continue
        within = sum(((b - b.mean()) ** 2).sum() for b in blocks)
        total = ((logs - logs.mean()) ** 2).sum()
        inside = logs.size - len(blocks)
        error = np.pi**2 * np.sqrt(3 / 32 / inside)
        chance = min(within / inside, np.pi**2 / 8 + 3 * error)  # of normal entries
        share = (total - within - (len(blocks) - 1) * chance) / (total - (logs.size - 1) * chance)
        np.testing.assert_allclose(report.r_squared[name], np.clip(share, 0, 1), rtol=1e-6)


def test_noise_equals_that_of_hand_collected_gradients():
    module, (x, y), loss, *_ = random_net(3)
    batches = [(x[:2], y[:2]), (x[2:5], y[2:5]), (x[5:], y[5:])]
    report = measure_geometry(
        module, batches, loss=loss, partitions=NAMES, num_probes=4, max_hvps=90
    )
    gradients = torch.stack([gradient_of(module, batch, loss) for batch in batches])
    sizes = [p.numel() for p in module.parameters()]
    partitions = {name: Partition.of(module, name) for name in NAMES}
    expected = noise_of(gradients, [2, 3, 4], sizes=sizes, partitions=partitions)
    assert report.noise.num_microbatches == 3
    assert report.noise.weight == 9.0
    for name in ("trace", "trace_relative_error", "noise_scale"):
        torch.testing.assert_close(getattr(report.noise, name), float(getattr(expected, name)))
    for name in NAMES:
        torch.testing.assert_close(
            report.noise.block_noise[name], float(expected.block_noise[name])
        )
    ratios = [tensor["signal_to_noise"] for tensor in report.per_tensor.values()]
    torch.testing.assert_close(ratios, expected.tensor_signal_to_noise.tolist())


def test_noise_batches_are_used_for_the_noise_only():
    module, (x, y), loss, *_ = random_net(3)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    plain = measure_geometry(module, [(x, y)], loss=loss)
    assert plain.noise is None
    assert all("signal_to_noise" not in tensor for tensor in plain.per_tensor.values())
    report = measure_geometry(module, [(x, y)], loss=loss, noise_batches=batches)
    assert report.smoothness == plain.smoothness
    gradients = torch.stack([gradient_of(module, batch, loss) for batch in batches])
    torch.testing.assert_close(report.noise.trace, float(noise_of(gradients, [4, 5]).trace))


@pytest.mark.parametrize("num_probes", [16, 256])
def test_report_of_a_reparameterization_is_that_of_the_dense_transform(num_probes):
    module, batch, loss, gradient, hessian = random_net(4)
    matrix = normal(len(hessian), len(hessian)) / len(hessian) ** 0.5
    seen = matrix.T @ hessian @ matrix
    report = measure_geometry(
        module,
        [batch],
        loss=loss,
        partitions=NAMES,
        num_probes=num_probes,
        reparameterization=Dense(matrix),
    )
    assert report.settings["coordinates"] == "Dense()"
    slope = matrix.T @ gradient
    torch.testing.assert_close(report.dual_norm["coordinate"], float(slope.abs().sum()))
    torch.testing.assert_close(
        report.density, float(slope.abs().sum() ** 2 / (len(slope) * slope.square().sum()))
    )
    exact = float(torch.linalg.eigvalsh(seen).abs().max())
    torch.testing.assert_close(report.lambda_max, exact, rtol=1e-2, atol=0)
    if num_probes == 256:
        torch.testing.assert_close(report.one_one_norm, float(seen.abs().sum()), **EXACT)
    for name in NAMES:
        check_brackets(
            report, seen, Partition.of(module, name), num_restarts=50, num_probes=num_probes
        )


def test_report_of_a_reparameterization_equals_that_of_the_reparameterized_module():
    hessian, matrix = indefinite(), normal(DIM, DIM)
    module = Quadratic(hessian)
    other = Quadratic(matrix.T @ hessian @ matrix)
    phi = torch.linalg.solve(matrix, module.theta().detach())
    nn.utils.vector_to_parameters(phi, other.parameters())
    one = measure(module, reparameterization=Dense(matrix))
    two = measure(other)
    assert one.smoothness.keys() == two.smoothness.keys()
    torch.testing.assert_close(one.loss, two.loss)
    torch.testing.assert_close(one.dual_norm, two.dual_norm)
    torch.testing.assert_close(one.one_one_norm, two.one_one_norm, rtol=1e-6, atol=0)
    for name, block in one.smoothness.items():
        same = two.smoothness[name]
        # 1e-3: rounding decides when an ascent stops
        torch.testing.assert_close(block.lower, same.lower, rtol=1e-3, atol=0)
        torch.testing.assert_close(block.operator_upper, same.operator_upper, rtol=1e-3, atol=0)


def without_time(report):
    return {key: value for key, value in report.to_dict().items() if key != "seconds"}


def test_same_seed_gives_the_same_report_and_another_seed_another():
    module, batch, loss, *_ = random_net(18)
    one, again, other = (
        measure_geometry(module, [batch], loss=loss, seed=seed) for seed in (5, 5, 6)
    )
    assert without_time(one) == without_time(again)
    assert one.one_one_norm != other.one_one_norm
    assert one.dual_norm == other.dual_norm


def test_order_of_the_partitions_is_that_of_the_report_and_changes_no_number():
    module, batch, loss, *_ = random_net(18)
    one = measure_geometry(module, [batch], loss=loss, partitions=("row", "tensor"))
    two = measure_geometry(module, [batch], loss=loss, partitions=("global", "tensor", "row"))
    assert list(one.smoothness) == ["row", "tensor", "coordinate", "global"]
    assert list(two.smoothness) == ["global", "tensor", "row", "coordinate"]
    assert one.smoothness == two.smoothness


def test_module_and_random_numbers_are_left_as_they_were():
    module, batch, loss = networks.conv_net()
    module.train()
    before = {name: t.clone() for name, t in module.state_dict().items()}
    ids = [id(p) for p in module.parameters()]
    flags = [part.training for part in module.modules()]
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    measure_geometry(
        module, [batch], loss=loss, partitions=NAMES, noise_batches=[batch, batch], mode="train"
    )
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert ids == [id(p) for p in module.parameters()]
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert flags == [part.training for part in module.modules()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()  # noqa: NPY002


def test_float32_module_is_measured_as_its_float64_twin():
    module, batch, loss, *_ = random_net(18)
    double = measure_geometry(module, [batch], loss=loss, num_probes=256)
    single = measure_geometry(
        module.float(), [tuple(t.float() for t in batch)], loss=loss, num_probes=256
    )
    torch.testing.assert_close(single.one_one_norm, double.one_one_norm, rtol=1e-4, atol=0)
    torch.testing.assert_close(single.lambda_max, double.lambda_max, rtol=1e-2, atol=0)


def test_partitions_of_one_name_are_refused():
    module, batch, loss, *_ = random_net(18)
    for partitions in (
        ("row", "row"),
        ("row", Partition.by_function(module, lambda n, p: n, name="row")),
    ):
        with pytest.raises(ValueError, match="expected partitions of different names"):
            measure_geometry(module, [batch], loss=loss, partitions=partitions)


@pytest.mark.parametrize("name", ["coordinate", "global"])
def test_another_partition_under_the_name_of_an_end_of_the_scale_is_refused(name):
    module, batch, loss, *_ = random_net(18)
    wrong = Partition.by_function(module, lambda n, p: n, name=name)
    with pytest.raises(ValueError, match='to be called "coordinate" or "global"'):
        measure_geometry(module, [batch], loss=loss, partitions=(wrong,))


def test_partition_of_another_module_is_refused():
    module, batch, loss, *_ = random_net(18)
    foreign = Partition.of(nn.Linear(3, 2), "row")
    with pytest.raises(ValueError, match=r"Partition\.check: expected the parameters of"):
        measure_geometry(module, [batch], loss=loss, partitions=(foreign,))


class Tokens(nn.Module):
    """A linear map of inputs to which raw parameters are added."""

    def __init__(self):
        super().__init__()
        self.token, self.positions = (nn.Parameter(torch.ones(1, n, 3)) for n in (1, 4))
        self.line = nn.Linear(3, 2)

    def forward(self, x):
        return self.line(torch.cat([self.token.expand(len(x), 1, 3), x + self.positions], dim=1))


def tokens(change=lambda module: module):
    loss = lambda module, x: module(x).square().mean()  # noqa: E731
    return change(Tokens()), [torch.randn(5, 4, 3)], loss


def test_rows_of_raw_parameters_are_in_the_default_report():
    module, batches, loss = tokens()
    report = measure_geometry(module, batches, loss=loss, num_probes=4)
    assert list(report.smoothness) == ["coordinate", "row", "tensor", "global"]
    assert report.smoothness["row"].num_blocks == 1 + 4 + 2 + 2
    assert "left_out" not in report.settings
    assert "Not measured" not in str(report)


def parametrized(module):
    nn.utils.parametrizations.orthogonal(module.line)
    return module


def test_a_partition_that_cannot_be_made_is_left_out_of_the_default_report_and_said():
    module, batches, loss = tokens(parametrized)
    report = measure_geometry(module, batches, loss=loss, num_probes=4)
    assert list(report.smoothness) == ["coordinate", "tensor", "global"]
    left_out = report.settings["left_out"]
    assert left_out.startswith("row: Partition.of: expected modules that tell")
    name = "line.parametrizations.weight.original"
    assert name in left_out
    assert "Not measured: row: Partition.of:" in " ".join(str(report).split())
    again = type(report).from_json(report.to_json())
    assert again.settings == report.settings
    with pytest.raises(ValueError, match=rf"{name} \(2, 3\) of ParametrizationList"):
        measure_geometry(module, batches, loss=loss, num_probes=4, partitions=["row"])
    placed = measure_geometry(module, batches, loss=loss, num_probes=4, output_dims={"original": 0})
    assert list(placed.smoothness) == ["coordinate", "row", "tensor", "global"]


def test_arguments_that_fit_nothing_are_refused_in_the_default_report_too():
    module, batches, loss = tokens()
    for options, message in (
        ({"output_dims": {"lines": 0}}, "every pattern of `output_dims`.* got 'lines'"),
        ({"output_dims": {"line": 2}}, "to name a dimension of line.weight"),
        ({"fused_qkv": "kqv"}, "`fused_qkv` to be one of .* got 'kqv'"),
        ({"output_dims": 1, "partitions": ["global"]}, "`output_dims` to give dimensions .* got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_geometry(module, batches, loss=loss, **options)


class Fused(nn.Module):
    """Attention of two heads in one linear map, as in GPT-NeoX and timm."""

    def __init__(self):
        super().__init__()
        self.num_heads = 2
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(torch.softmax(q * k, dim=-1) * v)


def test_heads_can_be_had_by_name_where_an_argument_tells_their_order():
    module, batch = Fused(), torch.randn(3, 4)
    loss = lambda module, x: module(x).square().mean()  # noqa: E731
    options = {"loss": loss, "partitions": ["head"], "num_probes": 4}
    report = measure_geometry(module, [batch], fused_qkv="qkv_head", **options)
    assert report.smoothness["head"].num_blocks == 6 + 6 + 2 + 1
    with pytest.raises(ValueError, match=r"expected `fused_qkv` for qkv\.weight"):
        measure_geometry(module, [batch], **options)


def test_unknown_partition_is_refused():
    module, batch, loss, *_ = random_net(18)
    with pytest.raises(ValueError, match=r"Partition\.of: expected `name` to be one of"):
        measure_geometry(module, [batch], loss=loss, partitions=("layer",))


@pytest.mark.parametrize("num_probes", [0, 3, -1])
def test_fewer_than_four_probes_are_refused(num_probes):
    module, batch, loss, *_ = random_net(18)
    with pytest.raises(ValueError, match=f"expected `num_probes` >= 4, got {num_probes}"):
        measure_geometry(module, [batch], loss=loss, num_probes=num_probes)


def test_one_noise_batch_is_refused():
    module, batch, loss, *_ = random_net(18)
    with pytest.raises(ProbeError, match="at least two batches for the gradient noise, got one"):
        measure_geometry(module, [batch], loss=loss, noise_batches=[batch])


def test_no_batch_and_no_noise_batch_are_refused():
    module, batch, loss, *_ = random_net(18)
    with pytest.raises(ProbeError, match="expected at least one batch, got none"):
        measure_geometry(module, [], loss=loss)
    with pytest.raises(ProbeError, match="expected at least one batch, got none"):
        measure_geometry(module, [batch], loss=loss, noise_batches=[])


def test_unknown_mode_is_refused():
    module, batch, loss, *_ = random_net(18)
    with pytest.raises(
        ValueError, match="expected `mode` to be one of 'eval', 'train', got 'test'"
    ):
        measure_geometry(module, [batch], loss=loss, mode="test")


@pytest.mark.parametrize("num_batches", [1, 2])  # two are asked for their noise first
def test_gradient_that_is_not_finite_is_refused(num_batches):
    module = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(module.weight)
    with pytest.raises(ProbeError, match="expected a finite gradient, got inf or NaN"):
        measure_geometry(
            module,
            [torch.ones(1, 2).double()] * num_batches,
            loss=lambda m, x: m(x).abs().sqrt().sum(),
        )
