"""A first try tells wrong losses from right ones, and alarms nobody about right ones."""

import copy
import itertools
import warnings

import lightning
import pytest
import torch
from support import networks
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf.callbacks import LinfSmoothnessMonitor
from lightning_linf.probe import Landscape, ProbeError, loss_check, measure_geometry

cross_entropy = networks.cross_entropy


class DetachedTanh(torch.autograd.Function):
    """Its backward takes the slope for a constant."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = x.detach().tanh()
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.y**2)


class NumpyTanh(torch.autograd.Function):
    """Its backward leaves autograd altogether."""

    @staticmethod
    def forward(ctx, x):
        ctx.y = x.detach().tanh()
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return torch.from_numpy(grad.detach().numpy() * (1 - ctx.y.numpy() ** 2))


class RightTanh(torch.autograd.Function):
    """Its backward can be differentiated."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def mlp(*middle, activation=nn.Tanh, width=32):
    return nn.Sequential(
        nn.Linear(8, width),
        activation(),
        nn.Linear(width, width),
        *middle,
        activation(),
        nn.Linear(width, 3),
    )


def points(num=64):
    return torch.randn(num, 8), torch.randint(3, (num,))


def conv(activation=nn.ReLU):
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        activation(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )
    images = torch.randn(16, 1, 12, 12) * (torch.rand(16, 1, 12, 12) > 0.7)  # many equal pixels
    return module, (images, torch.randint(3, (16,))), cross_entropy


def zero_inputs():
    module = mlp(activation=nn.ReLU)
    for part in module:
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)  # every unit sits on its kink
    x, y = points()
    return module, (torch.zeros_like(x), y), cross_entropy


def trained(case, steps=200):
    module, batch, loss = case
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module, batch).backward()
        optimizer.step()
    return module, batch, loss


def recurrent():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    return Last(), (torch.randn(8, 5, 8), torch.randint(3, (8,))), cross_entropy


def padded():
    module = nn.Sequential(nn.Embedding(9, 8, padding_idx=0), nn.Tanh(), nn.Linear(8, 9))
    module[2].weight = module[0].weight  # so that the padding row has a gradient after all
    return module, (torch.randint(9, (64,)), torch.randint(9, (64,))), cross_entropy


def rounded():
    """Computes in float32 whatever its parameters are."""
    return mlp(Apply(lambda x: x.float().to(x.dtype))), points(), cross_entropy


def scaled(factor):
    return mlp(), points(), lambda m, b: factor * cross_entropy(m, b)


RIGHT = {
    **{name: lambda make=make: make() for name, make in networks.ALL.items()},
    "relu": lambda: (mlp(activation=nn.ReLU), points(), cross_entropy),
    "many relus": lambda: (mlp(activation=nn.ReLU, width=64), points(4000), cross_entropy),
    "fitted relu": lambda: trained((mlp(activation=nn.ReLU), points(), cross_entropy)),
    "fitted tanh": lambda: trained((mlp(), points(), cross_entropy)),
    "zero inputs": zero_inputs,
    "conv": conv,
    "fitted conv": lambda: trained(conv(), 50),
    "recurrent": recurrent,
    "padded": padded,
    "rounded": rounded,
    "rounded relu": lambda: (
        mlp(Apply(lambda x: x.float().to(x.dtype)), activation=nn.ReLU, width=64),
        points(4000),
        cross_entropy,
    ),
    "float32 loss": lambda: (mlp(activation=nn.ReLU, width=128), points(4), float32_loss),
    "dropout": lambda: (mlp(nn.Dropout(0.5)), points(), cross_entropy),
    "absolute": lambda: (mlp(), (points()[0], torch.randn(64, 3)), absolute_error),
    "linear": lambda: (nn.Linear(8, 3), points()[0], lambda m, x: m(x).sum()),
    "custom": lambda: (mlp(Apply(RightTanh.apply)), points(), cross_entropy),
    "tiny": lambda: scaled(1e-30),
    "huge": lambda: scaled(1e30),
}


def float32_loss(module, batch):
    return F.cross_entropy(module(batch[0]).float(), batch[1])


def absolute_error(module, batch):
    return F.l1_loss(module(batch[0]), batch[1])


def check(case, dtype=None, mode="eval"):
    module, batch, loss = case
    if dtype is not None:
        module = module.to(dtype)
        convert = lambda t: t.to(dtype) if t.is_floating_point() else t  # noqa: E731
        batch = tuple(map(convert, batch)) if isinstance(batch, tuple) else convert(batch)
    with Landscape(module, [batch], loss=loss, mode=mode) as landscape:
        return landscape.check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", RIGHT)
def test_right_losses_pass(name, dtype):
    assert check(RIGHT[name](), dtype) is None


@pytest.mark.parametrize("name", ["dropout", "conv", "mlp"])
def test_right_losses_pass_in_train_mode(name):
    assert check(RIGHT[name](), torch.float32, "train") is None


def test_right_losses_pass_with_a_margin(monkeypatch):
    """No two steps that disagree with H v agree with each other to half the mismatch, for 0.1."""
    monkeypatch.setattr(loss_check, "_CONSISTENT", 0.5)
    for make in RIGHT.values():
        assert check(make(), torch.float32) is None


TRANSFORMERS = ["Llama", "Gemma2", "OPT", "GPTNeoX", "Mixtral"]


@pytest.mark.parametrize("steps", [0, 10])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_pass(name, steps):
    transformers = pytest.importorskip("transformers", reason="needs lightning-linf[recipes]")
    sizes = {"ffn_dim": 32} if name == "OPT" else {"intermediate_size": 32}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=16,
        attn_implementation="eager",
        **sizes,
    )
    module = transformers.AutoModelForCausalLM.from_config(config).eval()
    case = (module, torch.randint(32, (4, 8)), networks.causal_loss)
    assert check(trained(case, steps)) is None


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor, self.empty = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(0, 2))

    def forward(self, x):
        return x * self.factor + self.empty.sum()


def deep():
    layers = [nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.Tanh()) for _ in range(12)]
    return nn.Sequential(nn.Linear(8, 32), *layers, Apply(DetachedTanh.apply), nn.Linear(32, 3))


WRONG = {
    "detached": lambda: mlp(Apply(DetachedTanh.apply)),
    "numpy": lambda: mlp(Apply(NumpyTanh.apply)),
    "detached among relus": lambda: mlp(Apply(DetachedTanh.apply), activation=nn.ReLU),
    "one layer of many": deep,
    "a kernel for float32": lambda: mlp(
        Apply(lambda x: DetachedTanh.apply(x) if x.dtype == torch.float32 else x.tanh())
    ),
    "beside a scalar and nothing": lambda: mlp(Scale(), Apply(DetachedTanh.apply)),
    "detached and rounded": lambda: mlp(
        Apply(lambda x: x.float().to(x.dtype)), Apply(DetachedTanh.apply)
    ),
    "detached in float32 alone": lambda: mlp(
        Apply(lambda x: F.linear(x, torch.eye(32, dtype=torch.float32))),
        Apply(DetachedTanh.apply),
    ),
}


@pytest.mark.parametrize("make", WRONG.values(), ids=WRONG)
def test_a_backward_that_leaves_autograd_is_refused(make):
    with pytest.raises(ProbeError, match=r"differ by \d+\.\d%.* defining probe_loss\(batch\)"):
        check((make(), points(), cross_entropy))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_wrong_backward_under_a_float32_loss_is_refused(activation):
    module = mlp(Apply(DetachedTanh.apply), activation=activation)
    with pytest.raises(ProbeError, match="has a backward that leaves autograd"):
        check((module, points(), float32_loss))


def test_the_mismatch_is_that_of_the_two_dense_matrices():
    """With detached slopes the product lacks their part; both are known by double backward."""
    torch.manual_seed(1)
    batch, wrong = points(), mlp(Apply(DetachedTanh.apply), width=8).double()
    right = copy.deepcopy(wrong)
    right[3].function = torch.tanh
    batch = batch[0].double(), batch[1]
    with Landscape(wrong, [batch], loss=cross_entropy) as landscape:
        d = landscape.parameters.num_params
        lost = landscape.hvp(torch.eye(d, dtype=torch.float64))
    exact = networks.dense_hessian(right, lambda: cross_entropy(right, batch))
    sizes = torch.cat(
        [
            torch.full((p.numel(),), p.detach().square().mean().sqrt().item())
            for p in right.parameters()
        ]
    )
    vectors = torch.randn(200, d, dtype=torch.float64) * sizes
    ratios = ((vectors @ (exact - lost)) * sizes).norm(dim=1) / ((vectors @ exact) * sizes).norm(
        dim=1
    )
    with pytest.raises(ProbeError) as caught:
        check((wrong, batch, cross_entropy))
    stated = float(str(caught.value).split("differ by ")[1].split("%")[0]) / 100
    assert ratios.min() < stated < ratios.max()


class Normalised(nn.Module):
    """The gradient is stopped at the norm, as DoRA does."""

    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True).detach()


def distilled(module, batch):
    own = module(batch[0] + 0.1).detach().softmax(-1)
    return (module(batch[0]) - own).square().mean()


STOPPED = {
    "norm": lambda: (mlp(Normalised()), points(), cross_entropy),
    "norm among relus": lambda: (mlp(Normalised(), activation=nn.ReLU), points(), cross_entropy),
    "own target": lambda: (mlp(), points(), distilled),
    "straight through": lambda: (
        mlp(Apply(lambda x: x + (x.mul(8).round() / 8 - x).detach())),
        points(),
        cross_entropy,
    ),
}


@pytest.mark.parametrize("make", STOPPED.values(), ids=STOPPED)
def test_stopped_gradients_are_measured_and_remarked_upon(make):
    module, batch, loss = make()
    assert "held constant" in check((module, batch, loss))
    with pytest.warns(
        UserWarning, match=r"measure_geometry: the gradient changes by \d.* detached"
    ):
        report = measure_geometry(module, [batch], loss=loss, partitions=(), num_probes=4)
    assert report.lambda_max > 0


def test_spectral_norm_in_train_mode_is_a_stopped_gradient_too():
    module = nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(8, 16)), nn.Tanh(), nn.Linear(16, 3)
    )
    case = (module, points(), cross_entropy)
    assert check(case) is None
    assert "held constant" in check(case, mode="train")


def test_a_loss_that_counts_its_calls_elsewhere_is_refused():
    calls = itertools.count(1)

    def loss(module, batch):
        return cross_entropy(module, batch) * (1 + 0.01 * next(calls))

    with pytest.raises(ProbeError, match=r"same loss twice at one point, got .* a closure"):
        measure_geometry(mlp(), [points()], loss=loss)


def test_the_try_leaves_numbers_and_counts_as_they_are():
    module, batch, loss = networks.mlp()
    with Landscape(module, [batch], loss=loss) as landscape:
        vector = torch.randn(landscape.parameters.num_params, dtype=torch.float64)
        before = landscape.loss(), landscape.hvp(vector)
        assert landscape.check() is None
        assert landscape.num_hvps == 1
        assert landscape.loss() == before[0]
        assert torch.equal(landscape.hvp(vector), before[1])
    assert all(p.dtype == torch.float64 for p in module.parameters())


class Training(lightning.LightningModule):
    def __init__(self, *middle):
        super().__init__()
        self.net, self.calls = mlp(*middle), []

    def training_step(self, batch, batch_idx):
        return cross_entropy(self.net, batch)

    def probe_loss(self, batch):
        self.trainer.count(self.trainer.global_step)
        return self.training_step(batch, 0)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module, monitor, tmp_path):
    trainer = lightning.Trainer(
        max_steps=6,
        callbacks=[monitor],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    steps = []
    trainer.count = steps.append  # what a probe does not put back
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        trainer.fit(module, DataLoader(TensorDataset(*points(24)), batch_size=4))
    return steps


def test_a_monitor_tries_at_the_first_probe_of_a_training_only(tmp_path):
    monitor = LinfSmoothnessMonitor(2, num_probes=4, on_error="raise", max_overhead=None)
    for _ in range(2):
        steps = fit(Training(), monitor, tmp_path)
        first, second, third = (steps.count(step) for step in (2, 4, 6))
        assert second == third
        # Without values, for the memory; the loss twice, a product, a central difference.
        assert first == second + 6


def test_a_monitor_refuses_at_every_probe_and_warns_once(tmp_path):
    monitor = LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None)
    with pytest.warns(UserWarning, match="H v to be the change of the gradient|3 failures") as said:
        fit(Training(Apply(DetachedTanh.apply)), monitor, tmp_path)
    assert monitor.history == []
    assert sum("LinfSmoothnessMonitor" in str(warning.message) for warning in said) == 2


class Counting(Training):
    """Its loss depends on how often it was asked for, which a closure knows."""

    def __init__(self):
        super().__init__()
        counts = itertools.count(1)
        self.next = lambda: next(counts)

    def probe_loss(self, batch):
        return super().probe_loss(batch) * self.next()


def test_a_refused_loss_is_not_evaluated_again(tmp_path):
    monitor = LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None)
    with pytest.warns(UserWarning, match="the same loss twice|3 failures"):
        assert fit(Counting(), monitor, tmp_path) == [2, 2, 2]  # without values, and twice
    monitor = LinfSmoothnessMonitor(6, num_probes=4, max_overhead=None)
    with pytest.warns(UserWarning, match="the same loss twice|2 failures"):
        assert [fit(Counting(), monitor, tmp_path) for _ in range(2)] == 2 * [[6, 6, 6]]


def test_a_monitor_remarks_once_and_measures(tmp_path):
    monitor = LinfSmoothnessMonitor(2, num_probes=4, max_overhead=None)
    with pytest.warns(UserWarning, match="LinfSmoothnessMonitor: the gradient changes by") as said:
        fit(Training(Normalised()), monitor, tmp_path)
    assert len(monitor.history) == 3
    assert sum("LinfSmoothnessMonitor" in str(warning.message) for warning in said) == 1
