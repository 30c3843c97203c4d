"""The landscape's derivatives are exact."""

import contextlib
import copy
import gc
import weakref

import pytest
import torch
from support import networks
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_linf.probe import Landscape, ProbeError, measure_geometry
from lightning_linf.probe.batch_copy import split_batch
from lightning_linf.probe.measure import measure_landscape
from lightning_linf.probe.partitions import choose_partitions


@pytest.fixture(params=networks.ALL, scope="module")
def case(request):
    torch.manual_seed(0)  # wider than the fixture that seeds every test
    module, batch, loss = networks.ALL[request.param]()
    module.eval()
    return module, batch, loss, networks.dense_hessian(module, lambda: loss(module, batch))


def test_products_equal_the_dense_double_backward_hessian(case):
    module, batch, loss, hessian = case
    with Landscape(module, [batch], loss=loss) as landscape:
        vectors = torch.randn(3, landscape.parameters.num_params, dtype=torch.float64)
        products = landscape.hvp(vectors)
    torch.testing.assert_close(products, vectors @ hessian, rtol=1e-10, atol=1e-10)


def test_products_equal_central_differences_of_the_gradient(case):
    module, batch, loss, _ = case
    with Landscape(module, [batch], loss=loss) as landscape:
        vector = torch.randn(landscape.parameters.num_params, dtype=torch.float64)
        product = landscape.hvp(vector)
    expected = networks.central_difference(module, lambda: loss(module, batch), vector)
    # With a step of 1e-6 truncation is about 2e-7 (on the GPT-2) and rounding 1e-10.
    torch.testing.assert_close(product, expected, rtol=1e-6, atol=1e-6)


def test_loss_and_gradient_are_those_of_the_module(case):
    module, batch, loss, _ = case
    value = loss(module, batch)
    gradients = torch.autograd.grad(value, list(module.parameters()))
    with Landscape(module, [batch], loss=loss) as landscape:
        assert landscape.loss() == value.item()
        expected = torch.cat([g.reshape(-1) for g in gradients])
        torch.testing.assert_close(landscape.gradient(), expected, rtol=1e-12, atol=1e-14)


def test_lambda_max_and_one_one_norm_are_those_of_the_dense_hessian(case):
    module, batch, loss, hessian = case
    result = measure_geometry(module, [batch], loss=loss, partitions=(), num_probes=64)
    exact = torch.linalg.eigvalsh(hessian).abs().max().item()
    torch.testing.assert_close(result.lambda_max, exact, rtol=1e-3, atol=0.0)
    assert abs(result.lambda_max / exact - 1) < result.lambda_max_relative_error
    error = result.one_one_norm / hessian.abs().sum().item() - 1
    assert abs(error) < 5 * result.one_one_norm_relative_error + 0.02  # 0.02: bias at 64 probes
    rows = hessian.abs().sum(dim=1).split([p.numel() for p in module.parameters()])
    for tensor, part in zip(result.per_tensor.values(), rows, strict=True):
        # one row alone has a relative standard deviation of 1.6 / sqrt(64) = 0.2
        torch.testing.assert_close(
            tensor["one_one_norm_share"],
            (part.sum() / hessian.abs().sum()).item(),
            rtol=0.8,
            atol=0.01,
        )


def test_several_batches_are_averaged_by_their_numbers_of_samples():
    module, (x, y), loss = networks.mlp()
    parts = [(x[:7], y[:7]), (x[7:], y[7:])]
    with Landscape(module, [(x, y)], loss=loss) as whole:
        vectors = torch.randn(5, whole.parameters.num_params, dtype=torch.float64)
        expected = whole.hvp(vectors), whole.gradient(), whole.loss()
    for memory_gib in (1.0, 1e-9):  # all products in one pass, and one a pass
        with Landscape(module, parts, loss=loss, memory_gib=memory_gib) as landscape:
            torch.testing.assert_close(landscape.hvp(vectors), expected[0], rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(landscape.gradient(), expected[1])
            torch.testing.assert_close(landscape.loss(), expected[2])
            assert landscape.num_hvps == 5


def test_probe_weight_replaces_the_number_of_samples():
    class Weighted(nn.Linear):
        def probe_weight(self, batch):
            return float(batch[0, 0])

    module = Weighted(1, 1, bias=False).double()
    nn.init.ones_(module.weight)
    batches = [torch.tensor([[1.0]]).double(), torch.tensor([[3.0]]).double()]
    with Landscape(module, batches, loss=lambda m, x: m(x).square().mean()) as landscape:
        assert landscape.loss() == (1.0 * 1.0 + 3.0 * 9.0) / 4.0


def test_train_mode_keeps_its_dropout_masks_and_eval_mode_has_none():
    module = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Tanh(), nn.Linear(40, 1)).double()
    batches = [torch.randn(4, 6, dtype=torch.float64) for _ in range(2)]

    def loss(m, x):
        return m(x).square().mean()

    with Landscape(module, batches, loss=loss, mode="train") as landscape:
        first, second = landscape.gradient(), landscape.gradient()
        vector = torch.randn_like(first)
        product = landscape.hvp(vector)
    assert torch.equal(first, second)
    with Landscape(module, batches, loss=loss, mode="train", seed=1) as landscape:
        assert not torch.equal(first, landscape.gradient())
    with Landscape(module, batches, loss=loss) as landscape:
        evaluated = landscape.gradient()
        assert not torch.equal(product, landscape.hvp(vector))
    module.eval()
    plain = torch.autograd.grad(sum(loss(module, b) for b in batches) / 2, module.parameters())
    torch.testing.assert_close(evaluated, torch.cat([g.reshape(-1) for g in plain]))


def test_train_mode_product_is_the_derivative_of_the_train_mode_gradient():
    module, batch, loss = networks.conv_net()
    module.train()
    with Landscape(module, [batch], loss=loss, mode="train") as landscape:
        vector = torch.randn(landscape.parameters.num_params, dtype=torch.float64)
        product = landscape.hvp(vector)
    expected = networks.central_difference(module, lambda: loss(module, batch), vector)
    torch.testing.assert_close(product, expected, rtol=1e-6, atol=1e-6)


def test_counters_and_generators_start_every_evaluation_anew():
    class Annealed(nn.Linear):
        def __init__(self):
            super().__init__(2, 1)
            self.calls = 0
            self.generator = torch.Generator().manual_seed(3)

        def forward(self, x):
            self.calls += 1
            noise = torch.rand((), generator=self.generator).double()
            return super().forward(x) * (self.calls + noise)

    module = Annealed().double()
    batches = [torch.ones(1, 2).double(), torch.zeros(1, 2).double()]
    with Landscape(module, batches, loss=lambda m, x: m(x).square().mean()) as landscape:
        assert torch.equal(landscape.gradient(), landscape.gradient())
    assert module.calls == 0


def test_activation_checkpointing_sees_the_substituted_parameters():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Tanh())
            self.head = nn.Linear(8, 1)

        def forward(self, x, use_checkpoint=True):
            if use_checkpoint:
                x = checkpoint(self.body, x, use_reentrant=False)
            else:
                x = self.body(x)
            return self.head(x)

    module = Checkpointed().double()
    x = torch.randn(5, 4, dtype=torch.float64)
    hessian = networks.dense_hessian(module, lambda: module(x, False).square().mean())
    with Landscape(module, [x], loss=lambda m, b: m(b).square().mean()) as landscape:
        vector = torch.randn(len(hessian), dtype=torch.float64)
        torch.testing.assert_close(landscape.hvp(vector), hessian @ vector, rtol=1e-10, atol=1e-12)


def test_recurrent_layers_use_the_substituted_parameters():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(2, 3, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    module = Recurrent().double()
    x = torch.randn(2, 4, 2, dtype=torch.float64)
    hessian = networks.dense_hessian(module, lambda: module(x).square().mean())
    with Landscape(module, [x], loss=lambda m, b: m(b).square().mean()) as landscape:
        vector = torch.randn(len(hessian), dtype=torch.float64)
        torch.testing.assert_close(landscape.hvp(vector), hessian @ vector, rtol=1e-10, atol=1e-12)
    assert all(p.grad is None for p in module.parameters())
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())


def test_compiled_modules_are_probed_eagerly():
    module, batch, loss = networks.mlp()
    hessian = networks.dense_hessian(module, lambda: loss(module, batch))
    compiled = torch.compile(module, backend="aot_eager")
    loss(compiled, batch).backward()
    with Landscape(compiled, [batch], loss=loss) as landscape:
        vector = torch.randn(len(hessian), dtype=torch.float64)
        torch.testing.assert_close(landscape.hvp(vector), hessian @ vector, rtol=1e-10, atol=1e-12)


def test_bfloat16_modules_are_probed_in_float32():
    module, batch, loss = networks.mlp()
    module = module.bfloat16()
    batch = tuple(t.bfloat16() for t in batch)
    wide = networks.mlp()[0].float()
    wide.load_state_dict({k: v.float() for k, v in module.state_dict().items()})
    hessian = networks.dense_hessian(
        wide.double(), lambda: loss(wide, tuple(t.double() for t in batch))
    )
    with Landscape(module, [batch], loss=loss) as landscape:
        assert landscape.parameters.dtype == torch.float32
        vector = torch.randn(len(hessian))
        product = landscape.hvp(vector).double()
    torch.testing.assert_close(product, hessian @ vector.double(), rtol=1e-4, atol=1e-5)
    assert module[0].weight.dtype == torch.bfloat16


def test_autocast_around_the_probe_does_not_reach_it():
    module, batch, loss = networks.mlp()
    module, batch = module.float(), tuple(t.float() for t in batch)
    with Landscape(module, [batch], loss=loss) as landscape:
        expected = landscape.gradient()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        Landscape(module, [batch], loss=loss) as landscape,
    ):
        assert torch.equal(landscape.gradient(), expected)


def test_frozen_and_unused_parameters():
    module = nn.ModuleDict(
        {"used": nn.Linear(2, 1), "frozen": nn.Linear(2, 1), "unused": nn.Linear(2, 1)}
    ).double()
    module["frozen"].requires_grad_(False)
    x = torch.randn(3, 2, dtype=torch.float64)

    def loss(m, x):
        return (m["used"](x) * m["frozen"](x)).square().mean()

    with Landscape(module, [x], loss=loss) as landscape:
        assert landscape.parameters.names == [
            "used.weight",
            "used.bias",
            "unused.weight",
            "unused.bias",
        ]
        product = landscape.hvp(torch.ones(6, dtype=torch.float64))
    result = measure_geometry(module, [x], loss=loss, num_probes=4)
    assert product[:3].abs().min() > 0
    assert torch.equal(product[3:], torch.zeros(3, dtype=torch.float64))
    assert result.per_tensor["unused.weight"]["one_one_norm_share"] == 0.0


def test_a_linear_loss_has_no_curvature():
    module = nn.Linear(2, 1)
    result = measure_geometry(module, [torch.ones(1, 2)], loss=lambda m, x: m(x).sum())
    assert (result.one_one_norm, result.lambda_max) == (0.0, 0.0)
    assert result.ratio != result.ratio


def test_in_place_work_on_a_batch_does_not_last():
    def loss(module, batch):
        x = batch.pop("x")
        x.mul_(2.0)
        return module(x).square().mean()

    module = nn.Linear(2, 1)
    batch = {"x": torch.ones(1, 2)}
    with Landscape(module, [batch, batch], loss=loss) as landscape:
        assert torch.equal(landscape.gradient(), landscape.gradient())
    assert torch.equal(batch["x"], torch.ones(1, 2))


def _loss_of(function):
    return lambda module, x: function(module(x))


class _WrongSecondDerivative(torch.autograd.Function):
    """A product whose backward forgets that one of its factors is a variable."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        return grad * y, grad * x.detach()


class _OnceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return 2 * grad


def _net_of_two_layers():
    with torch.random.fork_rng():
        torch.manual_seed(1)  # made on import, outside the fixture that seeds every test
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


REFUSALS = {
    "no parameter": (nn.Identity(), torch.ones(1), None, "expected trainable parameters in Ident"),
    "frozen": (nn.Linear(1, 1).requires_grad_(False), torch.ones(1), None, "got none"),
    "complex": (nn.Linear(1, 1, dtype=torch.complex64), torch.ones(1), None, "is torch.complex64"),
    "no loss": (nn.Linear(1, 1), torch.ones(1, 1), None, "a `loss`, got a plain Linear"),
    "vector": (nn.Linear(1, 2), torch.ones(1, 1), _loss_of(lambda y: y), r"got shape \(1, 2\)"),
    "float": (nn.Linear(1, 1), torch.ones(1, 1), _loss_of(lambda y: 1.0), "got float"),
    "none": (nn.Linear(1, 1), torch.ones(1, 1), _loss_of(lambda y: None), "got NoneType"),
    "detached": (
        nn.Linear(1, 1),
        torch.ones(1, 1),
        _loss_of(lambda y: y.detach().sum()),
        "does not require grad",
    ),
    "infinite": (
        nn.Linear(1, 1),
        torch.ones(1, 1),
        _loss_of(lambda y: y.sum() / 0),
        "expected a finite loss .* got -?inf",
    ),
    "unsymmetric": (
        _net_of_two_layers(),
        torch.ones(1, 3),
        _loss_of(lambda y: _WrongSecondDerivative.apply(y[0, 0], y[0, 1])),
        "expected H v to be the change of the gradient",
    ),
    "no path": (
        nn.Linear(2, 1),
        torch.ones(1, 2),
        lambda m, x: copy.deepcopy(m)(x).sum(),
        "the loss depends on none of the parameters",
    ),
    "reentrant checkpoint": (
        nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)),
        torch.ones(1, 2),
        lambda m, x: m[1](checkpoint(m[0], x.requires_grad_(), use_reentrant=True)).sum(),
        "expected no reentrant checkpoint",  # the gradients of m[0] would be 0
    ),
    "nothing but a reentrant checkpoint": (
        nn.Linear(2, 1),
        torch.ones(1, 2),
        lambda m, x: checkpoint(m, x.requires_grad_(), use_reentrant=True).sum(),
        "expected no reentrant checkpoint",
    ),
    "once differentiable": (
        nn.Linear(2, 1),
        torch.ones(1, 2),
        _loss_of(lambda y: _OnceDifferentiable.apply(y).square().sum()),
        "an operation in the loss has no second derivative",
    ),
    "weight norm past its function": (
        nn.Linear(2, 3),
        torch.ones(3, 1),
        lambda m, x: torch.ops.aten._weight_norm_interface(m.weight, x)[0].square().sum(),
        "fused weight_norm has a wrong second derivative",
    ),
    "root at zero": (
        nn.Linear(1, 1, bias=False),
        torch.zeros(1, 1),
        _loss_of(lambda y: (y.square() + 0.0).sum().sqrt()),
        "expected a finite gradient",
    ),
}


@pytest.mark.parametrize(("module", "batch", "loss", "message"), REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_probed_is_refused(module, batch, loss, message):
    with pytest.raises(ProbeError, match=message):
        measure_geometry(module, [batch], loss=loss, partitions=())


def test_an_unsymmetric_hessian_is_refused_while_measuring_too():
    module, batch, loss, _ = REFUSALS["unsymmetric"]
    with (
        pytest.raises(ProbeError, match="expected a symmetric Hessian"),
        Landscape(module, [batch], loss=loss) as landscape,
    ):
        measure_landscape(landscape, choose_partitions(module, []))


def _old_weight_norm(module, dim):
    with pytest.warns(FutureWarning, match="weight_norm` is deprecated"):
        return nn.utils.weight_norm(module, dim=dim)


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, _old_weight_norm])
@pytest.mark.parametrize("dim", [0, 1, 2, None])  # 0 and 2: torch's fused kernel
def test_products_through_weight_norm_are_central_differences(norm, dim):
    module = nn.Sequential(norm(nn.Conv1d(2, 3, 2), dim=dim), nn.Tanh()).double()
    batch = torch.randn(4, 2, 5, dtype=torch.float64)

    def loss(module, batch):
        return module(batch).square().mean()

    with Landscape(module, [batch], loss=loss) as landscape:
        vector = torch.randn(landscape.parameters.num_params, dtype=torch.float64)
        product = landscape.hvp(vector)
    expected = networks.central_difference(module, lambda: loss(module, batch), vector)
    torch.testing.assert_close(product, expected, rtol=1e-7, atol=1e-8)


def test_a_parameter_used_past_the_attributes_is_refused():
    module = nn.Linear(2, 1)
    parameters = tuple(module.parameters())

    def loss(m, x):
        return m(x).square().mean() + 5 * sum(p.square().sum() for p in parameters)

    with (
        pytest.raises(ProbeError, match=r"reaches a parameter of shape .* past the attributes"),
        Landscape(module, [torch.ones(1, 2)], loss=loss) as landscape,
    ):
        landscape.gradient()


def test_a_parameter_in_a_list_is_seen():
    module = nn.Linear(2, 1, bias=False)
    module.decayed = list(module.parameters())

    def loss(m, x):
        return 5 * sum(p.square().sum() for p in m.decayed)

    with Landscape(module, [torch.ones(1, 2)], loss=loss) as landscape:
        assert torch.equal(landscape.hvp(torch.ones(2)), torch.full((2,), 10.0))


def test_entering_again_sees_the_module_as_it_is_then():
    module = nn.Linear(1, 1, bias=False)
    landscape = Landscape(module, [torch.ones(1, 1)], loss=lambda m, x: m(x).square().sum())
    for value in (1.0, 3.0):
        nn.init.constant_(module.weight, value)
        with landscape:
            assert landscape.loss() == value**2
    module.weight = nn.Parameter(torch.full((1, 1), 5.0))
    with landscape:
        assert landscape.loss() == 25.0


def test_a_frozen_bfloat16_part_is_widened_too():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16().requires_grad_(False))
    with Landscape(module, [torch.ones(1, 2)], loss=lambda m, x: m(x).square().sum()) as landscape:
        assert landscape.gradient().dtype == torch.float32
    assert module[1].weight.dtype == torch.bfloat16


def test_a_failed_probe_leaves_nothing_for_the_garbage_collector():
    module = nn.Linear(1, 1)
    kept = []

    def loss(m, x):
        hidden = m(x)
        kept.append(weakref.ref(hidden))
        return hidden.sum() / 0

    gc.disable()
    try:
        with (
            contextlib.suppress(ProbeError),
            Landscape(module, [torch.ones(1, 1)], loss=loss) as landscape,
        ):
            landscape.gradient()
        assert kept[0]() is None
    finally:
        gc.enable()


def test_lazy_parameters_are_refused():
    module = nn.Sequential(nn.LazyLinear(2))
    with pytest.raises(ProbeError, match=r"0.weight is still lazy"):
        Landscape(module, [torch.ones(1)], loss=_loss_of(torch.sum))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"batches": []}, ProbeError, "at least one batch"),
        ({"mode": "test"}, ValueError, "one of 'eval', 'train', got 'test'"),
        ({"memory_gib": 0.0}, ValueError, "`memory_gib` > 0, got 0.0"),
    ],
)
def test_constructor_refusals(arguments, error, message):
    defaults = {"batches": [torch.ones(1)], "loss": _loss_of(torch.sum)}
    with pytest.raises(error, match=message):
        Landscape(nn.Linear(1, 1), **{**defaults, **arguments})


def test_use_outside_its_with_block_is_refused():
    landscape = Landscape(nn.Linear(1, 1), [torch.ones(1)], loss=_loss_of(torch.sum))
    with pytest.raises(ProbeError, match="inside `with"):
        landscape.gradient()


@pytest.mark.parametrize("shape", [(3,), (2, 3), (), (1, 1, 2)])
def test_vectors_of_a_wrong_shape_are_refused(shape):
    with (
        Landscape(nn.Linear(1, 1), [torch.ones(1)], loss=_loss_of(torch.sum)) as landscape,
        pytest.raises(ValueError, match=r"expected `vectors` of shape \(2,\)"),
    ):
        landscape.hvp(torch.ones(shape))


def test_ambiguous_batch_sizes_are_refused_only_where_they_matter():
    module = nn.Linear(1, 1)
    batch = {"x": torch.ones(2, 1), "mask": torch.ones(3)}

    def loss(m, b):
        return m(b["x"]).square().mean()

    with Landscape(module, [batch], loss=loss) as landscape:
        landscape.gradient()
    with (
        pytest.raises(ProbeError, match=r"got \[2, 3\]. Define Linear.probe_weight"),
        Landscape(module, [batch, batch], loss=loss) as landscape,
    ):
        landscape.gradient()


def test_a_batch_is_split_by_samples():
    batch = {"x": torch.arange(7), "y": (torch.arange(14).view(7, 2), torch.tensor(3.0)), "z": "a"}
    parts = split_batch(batch, 3)
    assert [len(part["x"]) for part in parts] == [2, 2, 3]
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert torch.equal(torch.cat([part["y"][0] for part in parts]), batch["y"][0])
    assert all(part["y"][1] == 3.0 and part["z"] == "a" for part in parts)
    assert split_batch(batch, 1) == [batch]
    few = split_batch(torch.arange(2), 16)
    assert [part.tolist() for part in few] == [[0], [1]]
    with pytest.raises(ProbeError, match=r"same first dimension, got \[2, 3\]"):
        split_batch((torch.ones(2), torch.ones(3)), 2)


def test_a_checkpointed_product_after_another_evaluation_is_that_of_the_present_point():
    block = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh()).double()
    module = nn.Sequential(block, nn.Linear(4, 1).double())
    x = torch.randn(5, 3, dtype=torch.float64)

    def plain(module, x):
        return module[1](module[0](x)).square().mean()

    def checkpointed(module, x):
        return module[1](checkpoint(module[0], x, use_reentrant=False)).square().mean()

    dim = sum(p.numel() for p in module.parameters())
    v, offset = torch.randn(2, dim, dtype=torch.float64)
    with Landscape(module, [x], loss=plain) as landscape:
        expected = landscape.hvp(v)
    with Landscape(module, [x], loss=checkpointed) as landscape:
        torch.testing.assert_close(landscape.hvp(v), expected)
        landscape.gradient(offset)
        torch.testing.assert_close(landscape.hvp(v), expected)
        landscape.loss(offset)
        torch.testing.assert_close(landscape.hvp(v), expected)
        landscape.gradient()
        landscape.check()
        landscape.each_gradient(lambda gradient, weight: None)
        torch.testing.assert_close(landscape.hvp(v), expected)
