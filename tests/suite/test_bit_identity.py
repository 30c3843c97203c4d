"""A training run with monitors equals one without, to the last bit."""

from functools import partial

import lightning
import pytest
import torch
from lightning.fabric.utilities.rank_zero import WarningCache
from lightning.pytorch.loops.optimization.automatic import Closure
from support.bit_identity import IGNORED_WARNINGS, Everything, assert_same, monitors, trace, train
from torch import nn
from torch._dynamo import lookup_backend
from torch.utils.data import DataLoader

from lightning_linf.callbacks import (
    GradientHeterogeneityMonitor,
    GradientNoiseMonitor,
    LinfSmoothnessMonitor,
)

pytestmark = pytest.mark.filterwarnings(*IGNORED_WARNINGS)


@pytest.fixture(autouse=True)
def lightning_warns_again(monkeypatch):
    """Lightning says once in a process that a training_step has returned None."""
    monkeypatch.setattr(Closure, "warning_cache", WarningCache())


@pytest.mark.parametrize(
    ("options", "monitor_options"),
    [
        pytest.param({}, {}, id="plain"),
        pytest.param({}, {"mode": "train"}, id="train mode", marks=pytest.mark.slow),
        pytest.param({}, {"partitions": ["spectral"]}, id="spectral", marks=pytest.mark.slow),
        pytest.param(
            {"accumulate_grad_batches": 3},
            {"num_batches": 3, "every_n_steps": 4},
            id="accumulation",
            marks=pytest.mark.slow,
        ),
        pytest.param({"precision": "bf16-mixed"}, {}, id="bf16-mixed"),
        pytest.param({"precision": "bf16-true"}, {}, id="bf16-true", marks=pytest.mark.slow),
        pytest.param({"gradient_clip_val": 0.1}, {}, id="clip norm"),
        pytest.param(
            {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
            {},
            id="clip value",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_with_monitors_is_bit_identical(tmp_path, options, monitor_options):
    callbacks = monitors(**monitor_options)
    with_monitors = trace(*train(tmp_path, callbacks, **options))
    assert_same(trace(*train(tmp_path, [], **options)), with_monitors)
    num_measured = 20 // callbacks[0].every_n_steps
    assert [len(callback.history) for callback in callbacks] == [num_measured] * 3
    for callback, name in zip(callbacks[1:], ("lambda_max", "edge"), strict=True):
        values = [entry[name] for entry in callback.history]
        assert len(set(values)) == num_measured  # something was measured, each time anew


class Odd(Everything):
    """Steps without a loss, sparse gradients, nothing to train, and many tensors in a list."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.words = nn.Embedding(3, 2, sparse=True)
        self.memory = [torch.zeros(2, 3) for _ in range(300)]

    def on_fit_start(self):
        self.hidden[0].to(self.dtype)  # nobody else casts it

    def training_step(self, batch, batch_idx):
        if batch_idx in (3, 4):
            return None
        output = super().training_step(batch, batch_idx)
        self.memory[batch_idx].data.add_(1)
        self.memory[batch_idx + 50].t_()
        self.memory.append(self.memory.pop(0))
        made = torch.ones(4, 6)  # in the default dtype of the training
        output["loss"] = output["loss"] + self.words(batch[1]).square().mean()
        output["loss"] = output["loss"] + self.body[0](made).square().mean()
        return output

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


# Spectral norm detaches its singular vectors, and the probe may say so.
@pytest.mark.filterwarnings("ignore:.*the gradient changes by .* other than H v:UserWarning")
@pytest.mark.parametrize("precision", ["32-true", pytest.param("64-true", marks=pytest.mark.slow)])
def test_odd_steps_and_two_monitors_of_a_kind_are_bit_identical(tmp_path, precision):
    def loss(module, batch):
        return module.training_step(batch, 0)["loss"]

    second = LinfSmoothnessMonitor(
        2,
        num_probes=4,
        mode="train",
        on_error="raise",
        probe_loss=loss,
        name="train",
        max_overhead=None,
    )
    callbacks = [*monitors(), second]

    def run(callbacks):
        result = train(tmp_path, callbacks, make=Odd, precision=precision)
        return trace(*result), [tensor.clone() for tensor in result[1].memory]

    with_monitors = run(callbacks)
    assert_same(run([]), with_monitors)
    # Of each epoch's ten steps two have no loss; every second time, steps 1, 5, 7 and 9 are left.
    assert [len(callback.history) for callback in callbacks] == [16, 16, 16, 8]


def test_a_search_for_a_loss_in_train_mode_leaves_no_trace(tmp_path):
    class TrainOnly(Everything):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if self.training else None

    callback = LinfSmoothnessMonitor(every_n_steps=1, num_probes=4, max_overhead=None)
    with pytest.warns(UserWarning, match=r'mode="train"|20 failures in all'):
        with_monitors = trace(*train(tmp_path, [callback], make=TrainOnly))
    assert_same(trace(*train(tmp_path, [], make=TrainOnly)), with_monitors)


class RealParts(nn.Module):
    """A raw parameter, a weight norm, and attention over features with its output beside it."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 16))
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        attention = nn.ModuleDict({name: nn.Linear(16, 16) for name in ("query", "key", "value")})
        attention.num_heads = 4
        self.mixing = nn.ModuleDict({"attention": attention, "out": nn.Linear(16, 16)})

    def forward(self, x):
        y = self.normed(x + self.token[0])
        heads = (each(y).view(-1, 1, 4, 4) for each in self.mixing["attention"].children())
        mixed = nn.functional.scaled_dot_product_attention(*heads)
        return self.mixing["out"](mixed.reshape(-1, 16))


def test_rows_and_heads_of_real_modules_are_measured_bit_identically(tmp_path):
    class Real(Everything):
        def __init__(self):
            super().__init__()
            self.body.append(RealParts())

    smoothness = LinfSmoothnessMonitor(
        1,
        ["row", "head"],
        num_probes=4,
        on_error="raise",
        output_dims={"original": 0},
        max_overhead=None,
    )
    callbacks = [GradientHeterogeneityMonitor(1, on_error="raise"), smoothness]
    with_monitors = trace(*train(tmp_path, callbacks, make=Real, steps=3))
    assert_same(trace(*train(tmp_path, [], make=Real, steps=3)), with_monitors)
    assert [len(callback.history) for callback in callbacks] == [3, 3]
    blocks = {name: b.num_blocks for name, b in smoothness.last_report.smoothness.items()}
    num_tensors = len(smoothness.history[0]["tensor_names"])
    assert blocks["head"] == num_tensors + 2 * 3 * 3 + 3  # four heads instead of one block
    assert blocks["row"] > blocks["head"]


@pytest.mark.slow
def test_activation_checkpointing_is_bit_identical(tmp_path):
    make = partial(Everything, activation_checkpointing=True)
    with_monitors = trace(*train(tmp_path, monitors(), make=make))
    assert_same(trace(*train(tmp_path, [], make=make)), with_monitors)


def test_resuming_in_the_middle_is_bit_identical_and_continues_the_history(tmp_path):
    trainer, _, _ = train(tmp_path, monitors(), steps=10)
    trainer.save_checkpoint(tmp_path / "with.ckpt")
    trainer, _, _ = train(tmp_path, [], steps=10)
    trainer.save_checkpoint(tmp_path / "without.ckpt")

    callbacks = monitors()
    resumed = train(tmp_path, callbacks, ckpt_path=tmp_path / "with.ckpt")
    plain = train(tmp_path, [], ckpt_path=tmp_path / "without.ckpt")
    assert_same(trace(*plain), trace(*resumed))
    for callback in callbacks:
        assert [entry["step"] for entry in callback.history] == list(range(20))


def test_the_checkpoint_loads_with_weights_only(tmp_path):
    trainer, _, _ = train(tmp_path, monitors(), steps=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    keys = [key for key in checkpoint["callbacks"] if "Monitor" in key]
    assert len(keys) == 3


def test_a_failing_probe_leaves_no_trace_either(tmp_path):
    class Failing(Everything):
        def training_step(self, batch, batch_idx):
            output = super().training_step(batch, batch_idx)
            if self.probing:
                raise RuntimeError("in the middle of a probe")
            return output

        def probe_loss(self, batch):
            self.probing = True
            return self.training_step(batch, 0)["loss"]

        probing = False

    callback = LinfSmoothnessMonitor(every_n_steps=1, num_probes=4, max_overhead=None)
    with pytest.warns(
        UserWarning, match=r"20 failures in all|RuntimeError: in the middle of a probe"
    ):
        with_monitors = trace(*train(tmp_path, [callback], make=Failing))
    assert_same(trace(*train(tmp_path, [], make=Failing)), with_monitors)
    assert callback.history == []


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(lightning.pytorch.callbacks, "EMAWeightAveraging"), reason="needs lightning 2.6"
)
@pytest.mark.parametrize("is_first", [True, False])
def test_weight_averaging_beside_the_monitors_is_bit_identical(tmp_path, is_first):
    def run(callbacks):
        average = lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.9, update_every_n_steps=2)
        order = [average, *callbacks] if is_first else [*callbacks, average]
        kept = {}

        class Keep(lightning.Callback):
            def on_train_end(self, trainer, module):
                kept.update({k: v.clone() for k, v in average._average_model.state_dict().items()})

        return trace(*train(tmp_path, [Keep(), *order])), kept

    callbacks = monitors()
    assert_same(run([]), run(callbacks))
    assert len(callbacks[1].history) == 20


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's
@pytest.mark.slow
def test_compiled_training_is_bit_identical(tmp_path):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    class Body(torch.nn.Module):  # torch compiles no forward pass of its own containers
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return self.layers(x)

    class Compiled(Everything):
        def __init__(self):
            super().__init__()
            self.body = Body(self.body)
            self.body.compile(backend=backend)

    noise = GradientNoiseMonitor(1, on_error="raise")
    callbacks = [*monitors(), noise]
    options = {"make": Compiled, "accumulate_grad_batches": 2, "steps": 10}
    with_monitors = trace(*train(tmp_path, callbacks, **options))
    torch.compiler.reset()
    assert_same(trace(*train(tmp_path, [], **options)), with_monitors)
    assert graphs
    assert [len(callback.history) for callback in callbacks] == [10, 10, 10, 10]


class Record:
    """A batch of a class of its own."""

    def __init__(self, x):
        self.x = x

    def to(self, device):
        return self


class Counts(lightning.Callback):
    def __init__(self):
        self.steps, self.losses, self.total = 0, [], torch.zeros(())


class Records(lightning.LightningDataModule):
    """The same object again and again."""

    def __init__(self):
        super().__init__()
        self.served, self.nested = 0, {"losses": []}
        self.record = Record(torch.randn(8, 6))

    def train_dataloader(self):
        return DataLoader(range(20), batch_size=None, collate_fn=lambda index: self.record)


def step_scheduler(module, batch, loss):
    module.lr_schedulers().step()


def set_learning_rate(module, batch, loss):
    group = module.optimizers().param_groups[0]
    group["lr"] *= 0.9
    group["momentum"] = float(loss.detach())


def fill_learning_rate(module, batch, loss):
    module.optimizers().param_groups[0]["weight_decay"].mul_(1.1)


def stop(module, batch, loss):
    if loss < 0.8:  # without dropout, as a probe sees it, the loss is lower
        module.trainer.should_stop = True


def shorten(module, batch, loss):
    module.trainer.fit_loop.epoch_loop.max_steps -= 1


def count_in_callback(module, batch, loss):
    counts = module.trainer.callbacks[0]
    counts.steps += 1
    counts.losses.append(loss.item())
    counts.total += loss.detach()


def count_in_datamodule(module, batch, loss):
    module.trainer.datamodule.served += 1
    module.trainer.datamodule.nested["losses"].append(loss.item())


def count_in_metrics(module, batch, loss):
    metrics = module.trainer.callback_metrics
    metrics["count"] = metrics.get("count", torch.zeros(())) + 1
    metrics.setdefault("sum", torch.zeros(())).add_(loss.detach())


def drop_gradients(module, batch, loss):
    module.optimizers().zero_grad()


def write_to_batch(module, batch, loss):
    batch.x = batch.x * 0.9 + 0.1 * torch.rand(8, 6)


OUTSIDE = [
    step_scheduler,
    set_learning_rate,
    fill_learning_rate,
    stop,
    shorten,
    count_in_callback,
    count_in_datamodule,
    count_in_metrics,
    drop_gradients,
    write_to_batch,
]


class Meddler(lightning.LightningModule):
    """``training_step`` changes what lies outside the module."""

    def __init__(self, meddle):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.6), nn.Linear(16, 1))
        self.meddle = meddle

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch.x) - batch.x[:, :1]).square().mean()
        self.meddle(self, batch, loss)
        return loss

    def configure_optimizers(self):
        decay = torch.tensor(0.01)
        optimizer = torch.optim.SGD(self.parameters(), lr=0.02, momentum=0.5, weight_decay=decay)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.9)
        return [optimizer], [{"scheduler": scheduler, "frequency": 10**6}]


def meddle_and_train(tmp_path, meddle, callbacks):
    lightning.seed_everything(3, verbose=False)
    module, records, counts = Meddler(meddle), Records(), Counts()
    trainer = lightning.Trainer(
        max_steps=12,
        callbacks=[counts, *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        accelerator="cpu",
    )
    trainer.fit(module, datamodule=records)
    metrics = trainer.callback_metrics.items()
    return {
        "weights": {k: v.clone() for k, v in module.state_dict().items()},
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
        "steps": (trainer.global_step, trainer.should_stop, trainer.max_steps),
        "counts": (counts.steps, counts.losses, counts.total),
        "data": (records.served, records.nested, records.record.x),
        "metrics": {k: v.item() for k, v in metrics if not k.startswith("geometry/")},
        "gradients": [p.grad for p in module.parameters()],
        "random": torch.get_rng_state(),
    }


@pytest.mark.parametrize("meddle", OUTSIDE)
def test_what_training_step_changes_outside_the_module_is_put_back(tmp_path, meddle):
    monitor = LinfSmoothnessMonitor(
        every_n_steps=2, num_probes=4, on_error="raise", max_overhead=None
    )
    without = meddle_and_train(tmp_path, meddle, [])
    assert_same(without, meddle_and_train(tmp_path, meddle, [monitor]))
    assert len(monitor.history) >= 2
    if meddle is drop_gradients:
        return  # those of the step before, which training drops itself
    idle = meddle_and_train(tmp_path, lambda module, batch, loss: None, [])
    with pytest.raises(AssertionError):  # it did change something
        assert_same(without, idle)
