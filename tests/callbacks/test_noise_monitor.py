"""What the noise monitor logs, when, and what it refuses."""

import csv
import math
from types import SimpleNamespace

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf import quantities
from lightning_linf.callbacks import GradientNoiseMonitor
from lightning_linf.functional import noise

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*Checkpoint directory .* exists:UserWarning",
)


class Linear(lightning.LightningModule):
    """The mean over samples of x @ (theta, phi): the gradient is the mean of x, anywhere."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([1.0, 2.0, -1.0]))
        self.phi = nn.Parameter(torch.tensor([[0.5]]))
        self.unused = nn.Parameter(torch.ones(2))
        self.other = nn.Parameter(torch.ones(5))  # not in the optimizer

    def training_step(self, batch, batch_idx):
        (x,) = batch
        loss = (x @ torch.cat([self.theta, self.phi[0]])).mean() + 0 * self.other.sum()
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.AdamW([self.theta, self.phi, self.unused], lr=0.01, weight_decay=0.0)


NAMES, SIZES = ["theta", "phi", "unused"], [3, 1, 2]


def samples(length=64):
    generator = torch.Generator().manual_seed(5)
    return 1.0 + torch.randn(length, 4, generator=generator)


def fit(module, callbacks, tmp_path, *, data=None, batch_size=2, ckpt_path=None, **options):
    defaults = {
        "max_steps": 1,
        "accumulate_grad_batches": 2,
        "logger": False,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    trainer = lightning.Trainer(callbacks=callbacks, **{**defaults, **options})
    data = samples() if data is None else data
    loader = DataLoader(TensorDataset(data), batch_size=batch_size)
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def microbatches(data, batch_size=2):
    """Gradients (K, 6) and weights (K,) of the batches of the data."""
    parts = data.split(batch_size)
    gradients = torch.stack([nn.functional.pad(part.mean(dim=0), (0, 2)) for part in parts])
    return gradients.double(), torch.tensor([float(len(part)) for part in parts]).double()


def expected(gradients, weights):
    """The logged numbers by their definitions: K microbatches (K, d) with weights (K,)."""
    dim = gradients.shape[1]
    before = weights.cumsum(0)
    contrasts = []
    for k in range(1, len(weights)):
        mean = (weights[:k, None] * gradients[:k]).sum(0) / before[k - 1]
        contrasts.append((weights[k] * before[k - 1] / before[k]).sqrt() * (gradients[k] - mean))
    squares = torch.stack(contrasts).square()
    mean = (weights[:, None] * gradients).sum(0) / before[-1]
    variances = squares.mean(0)
    trace = variances.sum()

    def debiased(norm):
        if len(squares) == 1:
            return norm(variances)
        halves = [squares[::2], squares[1::2]]
        return 2 * norm(variances) - sum(
            len(half) / len(squares) * norm(half.mean(0)) for half in halves
        )

    mean_trace = torch.stack([part.sum() for part in variances.split(SIZES)]) / before[-1]
    signal = torch.stack([part.square().sum() for part in mean.split(SIZES)]) - mean_trace
    norms = squares.sum(1)
    norm_variance = (norms - trace).square().sum() / (len(norms) - 1)  # NaN for one contrast
    return {
        "noise_trace": trace,
        "noise_trace_relative_error": (norm_variance / len(norms)).sqrt() / trace,
        "noise_scale": trace / signal.sum() if signal.sum() > 0 else math.inf,
        "noise/coordinate": debiased(lambda v: v.sqrt().sum() / dim),
        "noise/global": debiased(lambda v: (v.sum() / dim).sqrt()),
        "trace_share": mean_trace / mean_trace.sum(),
        "signal_to_noise": signal.clamp(min=0.0) / mean_trace,
    }


def assert_entry(entry, gradients, weights, *, rtol=1e-5):  # of sums of a few float32 numbers
    for name, value in expected(gradients, weights).items():
        got = entry["per_tensor"][name] if name in entry["per_tensor"] else entry[name]
        torch.testing.assert_close(
            torch.as_tensor(got).double(),
            torch.as_tensor(value).double(),
            rtol=rtol,
            atol=1e-7,
            equal_nan=True,  # the error of 2 microbatches, the ratio of an unused tensor
            msg=lambda text, n=name: f"{n}: {text}",
        )


@pytest.mark.parametrize("num_microbatches", [2, 3, 8])
def test_noise_is_that_of_the_microbatches_of_the_step(tmp_path, num_microbatches):
    monitor = GradientNoiseMonitor(every_n_steps=2, on_error="raise")
    options = {"max_steps": 4, "accumulate_grad_batches": num_microbatches}
    trainer = fit(Linear(), [monitor], tmp_path, **options)
    assert [entry["step"] for entry in monitor.history] == [1, 3]
    gradients, weights = microbatches(samples())
    for entry in monitor.history:
        assert entry["tensor_names"] == NAMES
        start = entry["step"] * num_microbatches
        part = slice(start, start + num_microbatches)
        assert_entry(entry, gradients[part], weights[part])
    last = monitor.history[-1]
    assert trainer.callback_metrics[quantities.NOISE_TRACE.tag] == torch.tensor(last["noise_trace"])


def test_two_microbatches_by_hand(tmp_path):
    data = torch.tensor([[1.0, 0.0, 2.0, 1.0], [3.0, 0.0, 4.0, 5.0]])
    monitor = GradientNoiseMonitor(1, on_error="raise")
    fit(Linear(), [monitor], tmp_path, data=data, batch_size=1)
    (entry,) = monitor.history
    # z^2 = (2, 0, 2, 8, 0, 0); mean (2, 0, 3, 3, 0, 0)
    assert entry["noise_trace"] == pytest.approx(12.0)
    assert entry["noise_scale"] == pytest.approx(12 / (22 - 6))
    assert entry["noise/coordinate"] == pytest.approx((2 * 2**0.5 + 8**0.5) / 6)
    assert entry["noise/global"] == pytest.approx(2**0.5)
    assert entry["per_tensor"]["trace_share"].tolist() == pytest.approx([1 / 3, 2 / 3, 0.0])
    assert entry["per_tensor"]["signal_to_noise"][:2].tolist() == pytest.approx([11 / 2, 5 / 4])


class ComplexLinear(Linear):
    """As Linear, with its four entries as real and imaginary parts of two."""

    def __init__(self):
        super().__init__()
        self.pair = nn.Parameter(torch.tensor([1.0 + 2.0j, -1.0 + 0.5j]))

    def training_step(self, batch, batch_idx):
        (x,) = batch
        return (x @ torch.view_as_real(self.pair).reshape(-1)).mean()

    def configure_optimizers(self):
        return torch.optim.SGD([self.pair], lr=0.01)


def test_complex_parameters_count_as_their_real_and_imaginary_parts(tmp_path):
    monitor = GradientNoiseMonitor(1, on_error="raise")
    fit(ComplexLinear(), [monitor], tmp_path, accumulate_grad_batches=6)
    (entry,) = monitor.history
    gradients = samples()[:12].view(6, 2, 4).mean(dim=1)
    reference = noise(gradients, [2.0] * 6)
    assert entry["noise_trace"] == pytest.approx(float(reference.trace), rel=1e-5)
    assert entry["noise_scale"] == pytest.approx(float(reference.noise_scale), rel=1e-5)
    # one block has the root mean square of four standard deviations, to its own bias term
    assert entry["noise/global"] == pytest.approx(float(reference.trace / 4) ** 0.5, rel=0.1)


def test_every_scalar_is_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    monitor = GradientNoiseMonitor(2, on_error="raise")
    options = {"max_steps": 4, "accumulate_grad_batches": 3, "logger": logger}
    fit(Linear(), [monitor], tmp_path, **options)
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row[quantities.NOISE_TRACE.tag]]
    assert [int(row["step"]) for row in rows] == [1, 3]
    logged = {tag for tag, value in rows[0].items() if value and tag.startswith(quantities.PREFIX)}
    partitions = ("coordinate", "global")
    ends = (f"_scale_{end}/{name}" for end in ("lower", "upper") for name in partitions)
    names = ("_trace", "_trace_relative_error", "_scale", "/coordinate", "/global", *ends)
    assert logged == {f"geometry/noise{name}" for name in names}


def test_last_window_of_an_epoch_is_of_what_is_left(tmp_path):
    data = samples(15)  # batches of 2, the last of 1: windows of 3, 3, 2 microbatches
    monitor = GradientNoiseMonitor(1, on_error="raise")
    options = {"max_steps": 6, "accumulate_grad_batches": 3, "data": data}
    fit(Linear(), [monitor], tmp_path, **options)
    gradients, weights = microbatches(data)
    assert weights[-1] == 1.0
    assert [entry["step"] for entry in monitor.history] == list(range(6))
    for entry, start in zip(monitor.history, [0, 3, 6, 0, 3, 6], strict=True):
        assert_entry(entry, gradients[start : start + 3], weights[start : start + 3])


def test_a_window_of_one_microbatch_is_passed_over_and_the_next_step_measured(tmp_path):
    data = samples(14)  # windows of 3, 3, 1 microbatches
    monitor = GradientNoiseMonitor(3, on_error="raise")
    options = {"max_steps": 7, "accumulate_grad_batches": 3, "data": data}
    fit(Linear(), [monitor], tmp_path, **options)
    assert [entry["step"] for entry in monitor.history] == [3, 6]


def test_a_schedule_is_followed(tmp_path):
    data = samples(8)  # 4 batches: 4 windows of 1, then 2 of 2, then 1 of 4
    monitor = GradientNoiseMonitor(1, on_error="raise")
    schedule = GradientAccumulationScheduler({1: 2, 2: 4})
    options = {"accumulate_grad_batches": 1, "max_steps": -1, "max_epochs": 3, "data": data}
    fit(Linear(), [monitor, schedule], tmp_path, **options)
    gradients, weights = microbatches(data)
    assert [entry["step"] for entry in monitor.history] == [4, 5, 6]
    for entry, part in zip(monitor.history, [[0, 1], [2, 3], [0, 1, 2, 3]], strict=True):
        assert_entry(entry, gradients[part], weights[part])


def test_a_training_without_two_microbatches_is_said(tmp_path):
    monitor = GradientNoiseMonitor(1)
    schedule = GradientAccumulationScheduler({7: 2})
    with pytest.warns(UserWarning, match="GradientNoiseMonitor: no step .* nothing was measured"):
        fit(Linear(), [monitor, schedule], tmp_path, accumulate_grad_batches=1, max_steps=3)
    assert monitor.history == []


def test_weights_are_what_the_module_says(tmp_path):
    class Weighted(Linear):
        def probe_weight(self, batch):
            return 10.0 * len(batch[0])

    monitor = GradientNoiseMonitor(1, on_error="raise")
    fit(Weighted(), [monitor], tmp_path, accumulate_grad_batches=4)
    gradients, weights = microbatches(samples(8))
    assert_entry(monitor.history[0], gradients, 10.0 * weights)


def test_a_batch_that_training_step_empties_has_its_weight(tmp_path):
    class Pops(Linear):
        def training_step(self, batch, batch_idx):
            return super().training_step([batch.pop()], batch_idx)

    monitor = GradientNoiseMonitor(1, on_error="raise")
    fit(Pops(), [monitor], tmp_path)
    assert_entry(monitor.history[0], *microbatches(samples(4)))


def test_a_skipped_microbatch_is_left_out(tmp_path):
    class Skips(Linear):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx in (1, 3) else loss

    monitor = GradientNoiseMonitor(1, on_error="raise")
    with pytest.warns(UserWarning, match="`training_step` returned `None`"):
        fit(Skips(), [monitor], tmp_path, accumulate_grad_batches=4)
    gradients, weights = microbatches(samples(8))
    assert_entry(monitor.history[0], gradients[::2], weights[::2])


def test_gradients_that_are_not_zeroed_between_steps_do_no_harm(tmp_path):
    class Keeps(Linear):
        def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
            pass

    monitor = GradientNoiseMonitor(1, on_error="raise")
    fit(Keeps(), [monitor], tmp_path, max_steps=2)
    gradients, weights = microbatches(samples(8))
    for entry, part in zip(monitor.history, (slice(0, 2), slice(2, 4)), strict=True):
        assert_entry(entry, gradients[part], weights[part])


def test_what_is_done_to_gradients_after_backward_does_no_harm(tmp_path):
    class Clips(Linear):
        def on_after_backward(self):
            nn.utils.clip_grad_value_(self.parameters(), 1e-3)

    monitor = GradientNoiseMonitor(1, on_error="raise")
    fit(Clips(), [monitor], tmp_path, gradient_clip_val=1e-4)
    assert_entry(monitor.history[0], *microbatches(samples(4)))


def test_sparse_gradients_are_measured(tmp_path):
    class Embedding(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 1, sparse=True)

        def training_step(self, batch, batch_idx):
            return self.table((batch[0] > 0).long().sum(1) % 3).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    data = torch.tensor([[-1.0, -1.0, -1.0, -1.0], [1.0, 1.0, -1.0, -1.0]])  # rows 0 and 2
    monitor = GradientNoiseMonitor(1, on_error="raise")
    fit(Embedding(), [monitor], tmp_path, data=data, batch_size=1)
    # gradients (1, 0, 0) and (0, 0, 1)
    assert monitor.history[0]["noise_trace"] == pytest.approx(1.0)
    assert monitor.history[0]["noise/coordinate"] == pytest.approx(2 * 0.5**0.5 / 3)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_unscaled_under_a_gradient_scaler(tmp_path, fused):
    class Fused(Linear):
        def configure_optimizers(self):
            return torch.optim.AdamW([self.theta, self.phi, self.unused], fused=fused)

        def training_step(self, batch, batch_idx):
            with torch.autocast("cpu", enabled=False):  # the data are no float16 numbers
                return super().training_step(batch, batch_idx)

    monitor = GradientNoiseMonitor(1, on_error="raise")
    plugin = MixedPrecision("16-mixed", "cpu")
    options = {"plugins": [plugin], "accumulate_grad_batches": 4}
    trainer = fit(Fused(), [monitor], tmp_path, **options)
    assert trainer.precision_plugin.scaler.get_scale() > 1.0
    assert_entry(monitor.history[0], *microbatches(samples(8)))


def test_overflown_windows_are_passed_over_until_the_scale_fits(tmp_path):
    # the gradient of the loss is the scale / 2, and a float16 number, which is below 2 ** 16
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19, backoff_factor=0.25)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    monitor = GradientNoiseMonitor(2, on_error="raise")
    fit(Linear(), [monitor], tmp_path, plugins=[plugin], max_steps=8)
    # the first due step is step 1, with a scale of 2 ** 17; step 2 is measured in its place
    assert scaler.get_scale() == 2.0**15
    assert [entry["step"] for entry in monitor.history] == [2, 3, 5, 7]
    gradients, weights = microbatches(samples())
    assert_entry(monitor.history[0], gradients[4:6], weights[4:6], rtol=1e-2)


def test_a_window_that_overflows_late_is_passed_over_whole(tmp_path):
    data = samples(16)
    data[7] = math.inf  # in the last of four microbatches
    monitor = GradientNoiseMonitor(1, on_error="raise")
    options = {"max_steps": 2, "accumulate_grad_batches": 4, "data": data}
    fit(Linear(), [monitor], tmp_path, plugins=[MixedPrecision("16-mixed", "cpu")], **options)
    assert [entry["step"] for entry in monitor.history] == [1]


def test_nonfinite_gradients_without_a_scaler_are_reported_and_survived(tmp_path):
    data = samples(24)
    data[4, 0] = math.nan  # in the second step
    monitor = GradientNoiseMonitor(1)
    with pytest.warns(UserWarning, match="could not measure at step 1 .* expected a finite"):
        trainer = fit(Linear(), [monitor], tmp_path, data=data, max_steps=4)
    assert trainer.global_step == 4
    assert [entry["step"] for entry in monitor.history] == [0, 2, 3]


def test_a_batch_without_a_length_is_reported_once_and_raised_on_demand(tmp_path):
    class Unknown(Linear):
        def probe_weight(self, batch):
            return 0.0

    monitor = GradientNoiseMonitor(1)
    with pytest.warns(UserWarning, match="expected `weight` > 0|3 failures in all"):
        fit(Unknown(), [monitor], tmp_path, max_steps=3)
    assert monitor.history == []
    with pytest.raises(ValueError, match="expected `weight` > 0"):
        fit(Unknown(), [GradientNoiseMonitor(1, on_error="raise")], tmp_path)


def test_bfloat16_gradients_are_those_to_rounding(tmp_path):
    monitor = GradientNoiseMonitor(1, on_error="raise")
    fit(Linear(), [monitor], tmp_path, precision="bf16-true", accumulate_grad_batches=4)
    # a standard deviation of 0.7 next to errors of 4 * 0.004
    assert_entry(monitor.history[0], *microbatches(samples(8)), rtol=0.1)


class Network(lightning.LightningModule):
    """Dropout, batch statistics and momentum: whatever is touched shows in the next step."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 2)
        )

    def training_step(self, batch, batch_idx):
        return self.body(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def trace_of(callbacks, tmp_path, **options):
    lightning.seed_everything(3, verbose=False)
    module, seen = Network(), []

    class Recorder(lightning.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append([p.grad.clone() for p in pl_module.parameters()])

    fit(module, [*callbacks, Recorder()], tmp_path, data=samples(44), batch_size=4, **options)
    optimizer = module.trainer.optimizers[0].state_dict()["state"]
    states = [state[name] for state in optimizer.values() for name in sorted(state)]
    gradients = [g for step in seen for g in step]
    return [*module.state_dict().values(), *states, *gradients, torch.get_rng_state()]


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16-mixed"}, {"precision": "bf16-true"}, {"gradient_clip_val": 0.1}],
    ids=str,
)
def test_training_is_bit_identical(tmp_path, options):
    options = {"max_steps": 9, "accumulate_grad_batches": 3, **options}
    monitor = GradientNoiseMonitor(2, on_error="raise")
    ours, plain = (trace_of(c, tmp_path, **options) for c in ([monitor], []))
    assert [entry["step"] for entry in monitor.history] == [1, 3, 5, 7]
    for a, b in zip(ours, plain, strict=True):
        assert torch.equal(a, b)


def test_training_is_bit_identical_under_a_gradient_scaler(tmp_path):
    def run(callbacks):
        options = {"max_steps": 5, "plugins": [MixedPrecision("16-mixed", "cpu")]}
        return trace_of(callbacks, tmp_path, **options)

    monitor = GradientNoiseMonitor(1, on_error="raise")
    ours, plain = run([monitor]), run([])
    assert len(monitor.history) >= 3
    # gradients of steps that the scaler skips are NaN
    torch.testing.assert_close(ours, plain, rtol=0.0, atol=0.0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before:UserWarning")
def test_resuming_continues_history_and_steps(tmp_path):
    trainer = fit(Linear(), [GradientNoiseMonitor(2, on_error="raise")], tmp_path, max_steps=3)
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    monitor = GradientNoiseMonitor(2, on_error="raise")
    fit(Linear(), [monitor], tmp_path, ckpt_path=tmp_path / "three.ckpt", max_steps=8)
    assert [entry["step"] for entry in monitor.history] == [1, 3, 5, 7]
    gradients, weights = microbatches(samples())
    assert_entry(monitor.history[0], gradients[2:4], weights[2:4])
    assert_entry(monitor.history[1], gradients[:2], weights[:2])  # the loader starts again


def test_nothing_is_kept_on_other_steps_and_afterwards(tmp_path):
    kept = []

    class Looks(Linear):
        def on_after_backward(self):
            kept.append(monitor._microbatches is not None)

    monitor = GradientNoiseMonitor(3, on_error="raise")
    fit(Looks(), [monitor], tmp_path, max_steps=4)
    assert kept == [False] * 4 + [True] * 2 + [False] * 2
    assert monitor._microbatches is None


def test_a_failing_training_leaves_nothing_behind(tmp_path):
    class Fails(Linear):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise RuntimeError("in the middle of a window")
            return super().training_step(batch, batch_idx)

    monitor = GradientNoiseMonitor(1, on_error="raise")
    with pytest.raises(RuntimeError, match="in the middle"):
        fit(Fails(), [monitor], tmp_path)
    assert monitor._microbatches is None
    fit(Linear(), [monitor], tmp_path)
    assert_entry(monitor.history[0], *microbatches(samples(4)))


def setup_with(trainer_changes, module=None):
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, accumulate_grad_batches=2
    )
    for name, value in trainer_changes.items():
        setattr(trainer, name, value)
    GradientNoiseMonitor(1).setup(trainer, module or Linear(), "fit")


def test_a_training_without_accumulation_is_refused():
    with pytest.raises(MisconfigurationException, match=r"accumulate_grad_batches=1\. Set"):
        setup_with({"accumulate_grad_batches": 1})


def test_manual_optimization_is_refused():
    module = Linear()
    module.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="got Linear, which steps its optimizers"):
        setup_with({}, module)


def test_several_devices_need_no_accumulation(monkeypatch):
    with pytest.raises(MisconfigurationException):
        setup_with({"accumulate_grad_batches": 1})
    monkeypatch.setattr(lightning.Trainer, "world_size", 2)
    setup_with({"accumulate_grad_batches": 1})


def test_an_iterator_is_refused():
    class Iterates(Linear):
        def training_step(self, dataloader_iter):
            pass

    with pytest.raises(MisconfigurationException, match=r"Iterates\.training_step to take a batch"):
        setup_with({}, Iterates())


def test_nothing_is_refused_where_nothing_is_measured():
    trainer = SimpleNamespace(accumulate_grad_batches=1)
    monitor = GradientNoiseMonitor(1)
    monitor.setup(trainer, Linear(), "validate")
    assert monitor.history == []
    with pytest.raises(MisconfigurationException):  # what the same trainer gets for fitting
        setup_with({"accumulate_grad_batches": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "`every_n_steps` >= 1, got 0"),
        ({"on_error": "ignore"}, "'raise', got 'ignore'"),
    ],
)
def test_constructor_refusals(arguments, message):
    with pytest.raises(ValueError, match=f"GradientNoiseMonitor: expected .*{message}"):
        GradientNoiseMonitor(**arguments)


def test_a_parameter_whose_gradient_cannot_be_read_leaves_no_hook_on_the_others(tmp_path):
    class Freezes(Linear):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            if self.global_step == 1:
                self.unused.requires_grad_(False)
            return loss

    module, monitor = Freezes(), GradientNoiseMonitor(1)
    with pytest.warns(UserWarning, match="could not measure at step 1|failures in all"):
        fit(module, [monitor], tmp_path, max_steps=3)
    assert not any(p._backward_hooks for p in module.parameters())
