"""A swap replaces the optimizer everywhere, keeps what it must, or refuses and changes nothing."""

import copy
import logging
import pickle
import sys

import lightning
import pytest
import torch
import torch.multiprocessing as mp
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn
from torch.amp import GradScaler
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.utils.data import DataLoader, TensorDataset

from lightning_linf import Geometry, GeometryMixin, Partition
from lightning_linf.optim import BlockwiseAdam, Reparameterized, Signum
from lightning_linf.reparam import Rotation
from lightning_linf.swap.trainer import swap_optimizers

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*a checkpoint that ended before the epoch ended:UserWarning",  # data follow the step
)


def momentum_sgd(module):
    return SGD(module.parameters(), lr=0.1, momentum=0.9)


class Net(lightning.LightningModule):
    """Sees other data at every step, also when it is resumed; keeps the rates it was stepped by."""

    def __init__(self, configure=momentum_sgd):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.configure = configure
        self.rates = []

    def loss(self):
        self.seen += 1
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(int(self.seen)))
        return (self.net(x) - x[:, :2].abs()).square().mean()

    def training_step(self, batch, batch_idx):
        groups = [group for o in self.trainer.optimizers for group in o.param_groups]
        self.rates.append([float(group["lr"]) for group in groups])
        self.log("flat", 1.0)
        return self.loss()

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(64, 1)), batch_size=1)

    def configure_optimizers(self):
        return self.configure(self)


class Gan(Net):
    """Two optimizers by hand, the second with a schedule."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss())
            optimizer.step()
        self.lr_schedulers().step()

    def configure_optimizers(self):
        first = SGD(self.net[0].parameters(), lr=0.1, momentum=0.5)
        second = Adam(self.net[2].parameters(), lr=0.01)
        return [first, second], [schedulers.StepLR(second, 2)]


class Hook(Callback):
    """Call a function in a hook once, at a step."""

    def __init__(self, function, step=0, name="on_train_batch_start"):
        self.function, self.step = function, step
        setattr(self, name, self._call)

    def _call(self, trainer, module, *args):
        if self.function is not None and trainer.global_step >= self.step:
            function, self.function = self.function, None
            function(trainer, module)


def swapping(geometry, step=3, **options):
    return Hook(lambda trainer, module: swap_optimizers(trainer, module, geometry, **options), step)


def fit(module, tmp_path, callbacks=(), ckpt_path=None, **options):
    options = {key: value() if callable(value) else value for key, value in options.items()}
    defaults = {
        "max_steps": 6,
        "logger": False,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "default_root_dir": tmp_path,
    }
    trainer = lightning.Trainer(callbacks=[*callbacks], **{**defaults, **options})
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def assert_equal_weights(first, second):
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def assert_other_weights(first, second):
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in pairs)


def cosine(optimizer):
    return schedulers.CosineAnnealingLR(optimizer, 10)


FORMATS = {
    "optimizer": lambda o: o,
    "list": lambda o: [o],
    "tuple": lambda o: (o,),
    "two lists": lambda o: ([o], [cosine(o)]),
    "list of two lists": lambda o: [[o], [{"scheduler": cosine(o), "interval": "step"}]],
    "dictionary": lambda o: {"optimizer": o},
    "with a scheduler": lambda o: {"optimizer": o, "lr_scheduler": cosine(o)},
    "with a configured scheduler": lambda o: {
        "optimizer": o,
        "lr_scheduler": {"scheduler": cosine(o), "interval": "step"},
    },
    "list of dictionaries": lambda o: [{"optimizer": o, "lr_scheduler": cosine(o)}],
}


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("returned", FORMATS)
def test_the_new_optimizer_is_live_whatever_configure_optimizers_returns(tmp_path, returned, step):
    steps = {}

    def count(optimizer):
        optimizer.register_step_post_hook(
            lambda o, *_: steps.update({type(o).__name__: steps.get(type(o).__name__, 0) + 1})
        )

    def swap(trainer, module):
        count(trainer.optimizers[0])
        done = swap_optimizers(trainer, module, Geometry("adam"))
        assert done.startswith("SGD -> Adam; ")
        count(trainer.optimizers[0])

    module = Net(lambda module: FORMATS[returned](momentum_sgd(module)))
    live = {}

    def look(trainer, module):
        live["optimizers"] = [*trainer.optimizers, module.optimizers().optimizer]
        live["schedulers"] = [c.scheduler.optimizer for c in trainer.lr_scheduler_configs]
        count(trainer.optimizers[0])

    # the first swap is counted from on_train_start on
    first = Hook(lambda trainer, module: count(trainer.optimizers[0]), 0, "on_train_start")
    swap_hook = Hook(lambda t, m: (swap_optimizers(t, m, Geometry("adam")), look(t, m)), step)
    plain = Net(lambda module: FORMATS[returned](momentum_sgd(module)))
    fit(plain, tmp_path, limit_train_batches=2)
    fit(module, tmp_path, [first, swap_hook], limit_train_batches=2)
    assert {type(o) for o in live["optimizers"]} == {Adam}
    assert {type(o) for o in live["schedulers"]} <= {Adam}
    assert len(live["schedulers"]) == ("scheduler" in returned or "lists" in returned) or (
        returned == "list of dictionaries"
    )
    assert steps == {k: v for k, v in {"SGD": step, "Adam": 6 - step}.items() if v}
    assert module.rates == plain.rates


SCHEDULES = {
    "lambda": lambda o: schedulers.LambdaLR(o, lambda i: (i + 1) / 10),
    "lambdas": lambda o: schedulers.LambdaLR(o, [lambda i: 1 / (i + 1), lambda i: 0.9**i]),
    "step": lambda o: schedulers.StepLR(o, 2),
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.8),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 5, eta_min=0.01),
    "restarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 4, eta_min=0.01),
    "polynomial": lambda o: schedulers.PolynomialLR(o, 6),
    "cyclic": lambda o: schedulers.CyclicLR(o, 0.01, 0.2, step_size_up=2),
    "cycle": lambda o: schedulers.OneCycleLR(o, [0.2, 0.4], total_steps=9),
    "chained": lambda o: schedulers.ChainedScheduler(
        [schedulers.ConstantLR(o, 0.1, 2), schedulers.ExponentialLR(o, 0.9)]
    ),
    "sequential": lambda o: schedulers.SequentialLR(
        o, [schedulers.LinearLR(o, 0.1, total_iters=2), cosine(o)], [2]
    ),
    "wrapper": lambda o: Wrapper(cosine(o)),
}


class Wrapper:
    """What a user may write around a scheduler."""

    def __init__(self, scheduler):
        self.scheduler = scheduler

    @property
    def optimizer(self):
        return self.scheduler.optimizer

    def step(self, *args):
        self.scheduler.step()

    def state_dict(self):
        return self.scheduler.state_dict()

    def load_state_dict(self, state):
        self.scheduler.load_state_dict(state)


class Scheduled(Net):
    """Two groups under a schedule by step, by a scheduler of any kind."""

    def __init__(self, schedule, kind=Adam):
        super().__init__()
        self.schedule, self.kind = schedule, kind
        self.momenta = []

    def training_step(self, batch, batch_idx):
        (group, *_) = self.trainer.optimizers[0].param_groups
        self.momenta.append(group["betas"][0] if "betas" in group else group["momentum"])
        return super().training_step(batch, batch_idx)

    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step()

    def configure_optimizers(self):
        groups = [
            {"params": self.net[0].parameters()},
            {"params": self.net[2].parameters(), "lr": 0.3},
        ]
        options = {"momentum": 0.9} if self.kind is SGD else {}
        optimizer = self.kind(groups, lr=0.1, **options)
        return [optimizer], [{"scheduler": self.schedule(optimizer), "interval": "step"}]


@pytest.mark.parametrize("lr", [None, 0.4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_go_on_as_scheduled(tmp_path, name, lr):
    plain, module = Scheduled(SCHEDULES[name]), Scheduled(SCHEDULES[name])
    fit(plain, tmp_path, max_steps=8)
    first = {}

    def swap(trainer, module):
        group = trainer.optimizers[0].param_groups[0]
        first["lr"] = group.get("initial_lr", group["lr"])
        swap_optimizers(trainer, module, Geometry("sgd", lr=lr))

    fit(module, tmp_path, [Hook(swap, 3)], max_steps=8)
    factor = 1.0 if lr is None else lr / first["lr"]
    assert module.rates[:3] == plain.rates[:3]
    for ours, theirs in zip(module.rates[3:], plain.rates[3:], strict=True):
        assert ours == pytest.approx([factor * rate for rate in theirs], rel=1e-12)
    assert module.momenta == plain.momenta  # beta1 and momentum, which some cycle


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("lr", [None, 0.2])
def test_a_rate_in_a_tensor_goes_on_as_scheduled(tmp_path, step, lr):
    def configure(module):
        optimizer = Adam(module.parameters(), lr=torch.tensor(0.1))
        return [optimizer], [{"scheduler": cosine(optimizer), "interval": "step"}]

    plain, module = Net(configure), Net(configure)
    fit(plain, tmp_path)
    fit(module, tmp_path, [swapping(Geometry("adamw", lr=lr), step)])
    rates = [(1 if i < step or lr is None else 2) * rate for i, (rate,) in enumerate(plain.rates)]
    assert [rate for (rate,) in module.rates] == pytest.approx(rates)
    assert len(set(rates)) == 6


@pytest.mark.parametrize("name", ["cycle", "cyclic"])
def test_cycled_momentum_of_sgd_goes_on_as_beta1(tmp_path, name):
    plain = Scheduled(SCHEDULES[name], kind=SGD)
    module = Scheduled(SCHEDULES[name], kind=SGD)
    fit(plain, tmp_path, max_steps=8)
    fit(module, tmp_path, [swapping(Geometry("adamw", rotation="global"))], max_steps=8)
    assert module.momenta == plain.momenta
    assert len(set(module.momenta)) > 2


def test_a_plateau_is_still_met_with_a_lower_rate(tmp_path):
    def configure(module):
        optimizer = momentum_sgd(module)
        scheduler = schedulers.ReduceLROnPlateau(optimizer, patience=0, min_lr=0.004)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "flat"},
        }

    plain, same, double = Net(configure), Net(configure), Net(configure)
    options = {"max_steps": 10, "limit_train_batches": 2}
    fit(plain, tmp_path, **options)
    fit(same, tmp_path, [swapping(Geometry("adam"), 3)], **options)
    fit(double, tmp_path, [swapping(Geometry("adam", lr=0.2), 3)], **options)
    assert same.rates == plain.rates
    assert [r for (r,) in double.rates[3:]] == pytest.approx([2 * r for (r,) in plain.rates[3:]])
    assert len({r for (r,) in plain.rates}) == 3  # 0.1, 0.01 and the least


def test_a_swap_before_the_first_step_raises_no_warning_of_torch(tmp_path):
    module = Scheduled(SCHEDULES["cosine"])
    fit(module, tmp_path, [swapping(Geometry("sgd"), 0)])  # warnings are errors here


def two_groups(module):
    groups = [
        {"params": module.net[0].parameters(), "weight_decay": 0.1, "layer": 1},
        {"params": module.net[2].parameters(), "lr": 0.02},
    ]
    optimizer = AdamW(groups, lr=0.01, betas=(0.8, 0.9), amsgrad=True)
    scheduler = schedulers.OneCycleLR(optimizer, 0.1, total_steps=20)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def fused(module):
    return AdamW(module.parameters(), lr=0.01, fused=True)


def rotated(module):
    return Reparameterized(
        module.named_parameters(), lambda p: Adam(p, lr=0.01), Rotation("tensor", seed=4)
    )


def by_row(module):
    return BlockwiseAdam(module.named_parameters(), lr=0.01, partition=Partition.of(module, "row"))


@pytest.mark.parametrize(
    ("configure", "same"),
    [
        (momentum_sgd, [Geometry(), Geometry("sgd"), Geometry(SGD)]),
        (two_groups, [Geometry(), Geometry("adamw")]),
        (fused, [Geometry("adamw")]),
        (by_row, [Geometry(), Geometry("blockwise_adam", partition="row")]),
        (rotated, [Geometry(rotation=Rotation("tensor", seed=4))]),
    ],
    ids=["SGD", "AdamW", "fused", "blockwise", "rotated"],
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.05},
        {"precision": "bf16-mixed"},
        {"plugins": lambda: [MixedPrecision("16-mixed", "cpu", GradScaler("cpu", 256.0))]},
    ],
    ids=["plain", "accumulated", "clipped", "bf16", "fp16"],
)
def test_a_swap_to_the_same_leaves_training_as_it_is_to_the_last_bit(
    tmp_path, configure, same, options
):
    plain = Net(configure)
    fit(plain, tmp_path, **options)
    for geometry in same if not options else same[:1]:
        module = Net(configure)
        trainer = fit(module, tmp_path, [swapping(geometry)], **options)
        assert_equal_weights(plain, module)
        assert module.rates == plain.rates
        assert trainer.global_step == 6


@pytest.mark.parametrize(
    ("configure", "there"),
    [
        (momentum_sgd, Geometry(rotation="global")),  # SGD does not notice a rotation
        (momentum_sgd, Geometry(rotation="row", rotation_seed=3)),
        (lambda m: AdamW(m.parameters(), 0.01), Geometry("blockwise_adam", partition="coordinate")),
        (lambda m: Adam(m.parameters(), 0.01), Geometry("adamw")),  # without decay
    ],
)
def test_there_and_back_between_equal_optimizers_changes_nothing_but_rounding(
    tmp_path, configure, there
):
    class Exact(Net):
        def __init__(self, configure):
            super().__init__(configure)
            self.double()

        def loss(self):
            self.seen += 1
            generator = torch.Generator().manual_seed(int(self.seen))
            x = torch.randn(8, 3, generator=generator, dtype=torch.float64)
            return (self.net(x) - x[:, :2].abs()).square().mean()

    plain, module = Exact(configure), Exact(configure)
    fit(plain, tmp_path, max_steps=9)
    fit(module, tmp_path, [swapping(there, 3)], max_steps=9)
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    back = Exact(configure)
    kind = type(configure(back))
    fit(back, tmp_path, [swapping(there, 3), swapping(Geometry(kind), 6)], max_steps=9)
    assert type(back.trainer.optimizers[0]) is kind
    for ours, theirs in zip(back.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_without_carry_the_state_starts_anew(tmp_path):
    plain, module = Net(), Net()
    fit(plain, tmp_path)
    said = []

    def swap(trainer, module):
        said.append(swap_optimizers(trainer, module, Geometry(), carry=False))
        assert not trainer.optimizers[0].state

    fit(module, tmp_path, [Hook(swap, 3)])
    assert said == ["SGD -> SGD; its state starts anew"]
    assert_other_weights(plain, module)


def test_gradients_accumulated_before_a_swap_count_after_it(tmp_path):
    """A swap between two batches of one step."""
    plain, module = Net(), Net()
    fit(plain, tmp_path, accumulate_grad_batches=4, max_steps=2)

    class Middle(Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 6:  # step 1 has batches 4 to 7
                assert all(p.grad is not None for p in module.parameters())
                swap_optimizers(trainer, module, Geometry())

    fit(module, tmp_path, [Middle()], accumulate_grad_batches=4, max_steps=2)
    assert_equal_weights(plain, module)


def test_what_was_done_is_logged(tmp_path, caplog):
    module = GeometryMixin.wrap(Net(), Geometry("signum"))
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fit(module, tmp_path, [swapping(Geometry("sgd", rotation="global"))])
    first, line = [r.getMessage() for r in caplog.records if "swapped" in r.getMessage()]
    assert first == "Optimizer swapped at the start: SGD -> Signum; there was no state to carry."
    assert line.startswith(
        "Optimizer swapped at step 3: Signum -> SGD under Rotation(scope='global', seed=0"
    )
    assert line.endswith("; momentum was carried over.")


class Within(Net):
    """Swaps in a hook of its own."""

    def __init__(self, hook, configure=momentum_sgd, automatic=True):
        super().__init__(configure)
        self.automatic_optimization = automatic
        original = getattr(self, hook)

        def swap_first(*args, **kwargs):
            swap_optimizers(self.trainer, self, Geometry("adam"))
            return original(*args, **kwargs)

        setattr(self, hook, swap_first)

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            return super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss())
        optimizer.step()
        return None


@pytest.mark.parametrize(
    ("hook", "automatic"),
    [
        ("training_step", True),
        ("training_step", False),
        ("on_before_optimizer_step", True),
        ("on_before_optimizer_step", False),
        ("on_before_zero_grad", True),
        ("on_before_backward", True),
        ("on_after_backward", False),
        ("configure_gradient_clipping", True),
        ("optimizer_step", True),
    ],
)
def test_a_swap_in_the_middle_of_a_step_is_refused(tmp_path, hook, automatic):
    message = r"swap_optimizers: expected to be called between .* called in .* on_train_batch_start"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Within(hook, automatic=automatic), tmp_path)


@pytest.mark.parametrize("hook", ["training_step", "on_before_optimizer_step"])
def test_it_is_refused_in_a_hook_of_a_callback_too(tmp_path, hook):
    class Early(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            swap_optimizers(trainer, module, Geometry("adam"))

    with pytest.raises(MisconfigurationException, match="called in on_before_optimizer_step"):
        fit(Net(), tmp_path, [Early()])


@pytest.mark.parametrize(
    "hook", ["on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_train_batch_end"]
)
def test_between_steps_every_hook_may_swap(tmp_path, hook):
    plain, module = Net(), Net()
    fit(plain, tmp_path)
    trainer = fit(module, tmp_path, [Hook(swapping(Geometry()).function, 0, hook)])
    assert_equal_weights(plain, module)
    assert trainer.global_step == 6


@pytest.mark.parametrize("index", [None, 0, 1])
def test_of_several_optimizers_all_or_one_is_replaced(tmp_path, index):
    module, plain = Gan(), Gan()
    live = {}

    def swap(trainer, module):
        swap_optimizers(trainer, module, Geometry("adamw", rotation="tensor"), index=index)
        live["kinds"] = [type(o) for o in trainer.optimizers]
        live["wrapped"] = [type(o.optimizer) for o in module.optimizers()]
        live["scheduler"] = module.lr_schedulers().optimizer is trainer.optimizers[1]

    fit(plain, tmp_path, max_steps=12)
    trainer = fit(module, tmp_path, [Hook(swap, 4)], max_steps=12)
    expected = [SGD, Adam]
    for i in range(2) if index is None else [index]:
        expected[i] = Reparameterized
    assert live == {"kinds": expected, "wrapped": expected, "scheduler": True}
    assert trainer.global_step == 12  # each step of either counts
    rate = trainer.optimizers[1].param_groups[0]["lr"]
    assert rate == plain.trainer.optimizers[1].param_groups[0]["lr"]
    assert_other_weights(plain, module)


def test_two_optimizers_swapped_to_the_same_train_as_before(tmp_path):
    module, plain = Gan(), Gan()
    fit(plain, tmp_path, max_steps=12)
    fit(module, tmp_path, [swapping(Geometry(), 4)], max_steps=12)
    assert_equal_weights(plain, module)


class Hiding(Wrapper):
    """Keeps its scheduler where nobody finds it."""

    def __init__(self, scheduler):
        self.find = lambda: scheduler

    scheduler = property(lambda self: self.find())


@pytest.mark.parametrize(
    ("schedule", "geometry", "error", "message"),
    [
        (SCHEDULES["cycle"], Geometry(torch.optim.Adagrad), ValueError, "with momentum under OneC"),
        (
            lambda o: schedulers.SequentialLR(o, [SCHEDULES["cycle"](o), cosine(o)], [9]),
            Geometry(torch.optim.Adagrad),
            ValueError,
            r"momentum under OneCycleLR\(cycle_momentum=True\), got Adagrad. Set cycle_momentum",
        ),
        (
            lambda o: Hiding(cosine(o)),
            Geometry("sgd"),
            MisconfigurationException,
            r"as an attribute of it, .* got neither in Hiding. Let it keep its optimizer",
        ),
        (cosine, Geometry(torch.optim.LBFGS), ValueError, "LBFGS doesn't support per-parameter"),
        (cosine, Geometry("adam", options={"eps": -1.0}), ValueError, "Invalid epsilon"),
    ],
)
def test_a_swap_that_fails_leaves_all_as_it_was(tmp_path, schedule, geometry, error, message):
    plain, module = Scheduled(schedule), Scheduled(schedule)
    fit(plain, tmp_path, max_steps=8)

    def swap(trainer, module):
        optimizers, wrapped = list(trainer.optimizers), module.optimizers().optimizer
        with pytest.raises(error, match=message):
            swap_optimizers(trainer, module, geometry)
        assert trainer.optimizers == optimizers
        assert module.optimizers().optimizer is wrapped
        (config,) = trainer.lr_scheduler_configs
        for part in (config.scheduler, *getattr(config.scheduler, "_schedulers", ())):
            assert part.optimizer is optimizers[0]

    fit(module, tmp_path, [Hook(swap, 3)], max_steps=8)
    assert_equal_weights(plain, module)
    assert module.rates == plain.rates


def swap_other(trainer, module):
    swap_optimizers(trainer, Net(), Geometry())


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (
            swapping(Geometry(), index=1).function,
            ValueError,
            "of one of 1 optimizers, got 1. Count",
        ),
        (swapping(Geometry(), index=-1).function, ValueError, "of one of 1 optimizers, got -1"),
        (swapping("adam").function, ValueError, r"expected a Geometry, got 'adam'. Write, say"),
        (swap_other, MisconfigurationException, "the module that the trainer fits, got another"),
    ],
)
def test_misuse_is_refused(tmp_path, function, error, message):
    with pytest.raises(error, match=message):
        fit(Net(), tmp_path, [Hook(function)])


@pytest.mark.filterwarnings("ignore:.*will run with no optimizer:UserWarning")
def test_a_module_without_an_optimizer_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="with learning rates to replace, got none"):
        fit(Net(lambda module: None), tmp_path, [swapping(Geometry("adam"), 0)])
    with pytest.raises(MisconfigurationException, match="Return one from configure_optimizers"):
        fit(GeometryMixin.wrap(Net(lambda module: None), Geometry("adam")), tmp_path)


def test_outside_of_a_fit_there_is_nothing_to_swap(tmp_path):
    module = GeometryMixin.wrap(Net(), Geometry())
    trainer = fit(module, tmp_path)
    with pytest.raises(
        MisconfigurationException, match=r"that is fitting, .* one that is finished"
    ):
        module.swap_optimizer(Geometry("adam"))
    assert type(trainer.optimizers[0]) is SGD
    message = "not attached to a `Trainer`"
    with pytest.raises(RuntimeError, match=message):
        GeometryMixin.wrap(Net(), Geometry()).swap_optimizer(Geometry("adam"))


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategies_with_flat_parameters_are_refused(strategy):
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.__class__ = strategy
    remedy = rf"got {strategy.__name__}.*Use ModelParallelStrategy, and fully_shard"
    with pytest.raises(MisconfigurationException, match=f"swap_optimizers: .*{remedy}"):
        swap_optimizers(trainer, Net(), Geometry("adam"))
    module = GeometryMixin.wrap(Net(), Geometry("adam"))
    module.trainer = trainer
    with pytest.raises(MisconfigurationException, match=f"GeometryMixin: .*{remedy}"):
        module.setup("fit")
    module.geometry = Geometry()  # leaves the optimizer as it is
    module.setup("fit")


# The mixin.


class Calling(Net):
    """Overrides the mixin's hooks as modules do, without a call of super."""

    def setup(self, stage):
        self.called = ["setup"]

    def on_fit_start(self):
        self.called.append(type(self.trainer.optimizers[0]).__name__)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["theirs"] = 1

    def on_load_checkpoint(self, checkpoint):
        self.called.append(checkpoint["theirs"])


class CallingSuper(Calling):
    def setup(self, stage):
        super().setup(stage)
        self.called.append("again")

    def on_fit_start(self):
        super().on_fit_start()


class GeometryNet(GeometryMixin, Net):
    geometry = Geometry("adamw", rotation="global", rotation_seed=5)


class GeometryCalling(GeometryMixin, Calling):
    geometry = Geometry("adam")


class GeometryCallingSuper(GeometryMixin, CallingSuper):
    geometry = Geometry("adam")

    def setup(self, stage):
        super().setup(stage)
        self.called.append("ours")


def test_the_geometry_is_that_of_the_optimizer_made_by_hand(tmp_path):
    def configure(module):
        def make(params):
            return AdamW(params, lr=0.1, betas=(0.9, 0.999), weight_decay=0.0)

        return Reparameterized(module.named_parameters(), make, Rotation("global", seed=5))

    by_hand, mixed, wrapped = Net(configure), GeometryNet(), Net()
    assert GeometryMixin.wrap(wrapped, GeometryNet.geometry) is wrapped
    for module in (by_hand, mixed, wrapped):
        fit(module, tmp_path)
        assert isinstance(module.trainer.optimizers[0], Reparameterized)
        assert_equal_weights(by_hand, module)


@pytest.mark.parametrize("configure", [momentum_sgd, two_groups, rotated])
def test_with_nothing_chosen_training_is_as_it_is_to_the_last_bit(tmp_path, configure):
    plain, module = Net(configure), GeometryMixin.wrap(Net(configure), Geometry())
    fit(plain, tmp_path)
    fit(module, tmp_path)
    assert_equal_weights(plain, module)
    assert module.rates == plain.rates


@pytest.mark.parametrize("kind", [GeometryCalling, GeometryCallingSuper])
def test_the_modules_own_hooks_are_called_after_the_swap(tmp_path, kind):
    module = kind()
    trainer = fit(module, tmp_path)
    assert module.called[0] == "setup"
    assert module.called[-1] == "Adam"
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again, plain = kind(), kind()
    fit(again, tmp_path, ckpt_path=tmp_path / "last.ckpt", max_steps=9)
    assert again.called[-2:] == [1, "Adam"]
    fit(plain, tmp_path, max_steps=9)
    assert_equal_weights(again, plain)


def test_a_second_fit_starts_in_its_first_geometry(tmp_path):
    module = GeometryNet()

    def swap(trainer, module):
        module.swap_optimizer(Geometry("signum"))

    trainer = fit(module, tmp_path, [Hook(swap, 3)])
    assert type(trainer.optimizers[0]) is Signum
    trainer = fit(module, tmp_path)
    assert isinstance(trainer.optimizers[0], Reparameterized)
    assert len(module._swaps) == 1


def test_the_order_of_bases_and_hidden_hooks_are_refused():
    message = (
        r"to come first .* bases of Wrong, got Net before .* class Wrong\(GeometryMixin, Net\)"
    )
    with pytest.raises(TypeError, match=message):

        class Wrong(Net, GeometryMixin):
            pass

    with pytest.raises(TypeError, match=r"Hidden.setup to call super\(\).setup, got an override"):

        class Hidden(GeometryMixin, Net):
            def setup(self, stage):
                self.ready = True

    class Child(GeometryNet):
        def on_save_checkpoint(self, checkpoint):
            GeometryMixin.on_save_checkpoint(self, checkpoint)

    class Other:
        note = 1

    class Beside(Other, GeometryNet):  # has nothing that could hide a hook
        pass

    class Hiding:
        def on_fit_start(self):
            pass

    for kind in (Child, Beside):
        assert kind().geometry is GeometryNet.geometry
    with pytest.raises(TypeError, match="got Hiding before it, whose hooks would hide its own"):

        class Late(Hiding, GeometryNet):
            pass


def test_wrapping_keeps_the_module_and_names_its_class():
    module = Net()
    module.note = "kept"
    wrapped = GeometryMixin.wrap(module, Geometry("adam"))
    assert wrapped is module
    assert isinstance(wrapped, (Net, GeometryMixin))
    assert type(wrapped).__name__ == "GeometryNet"
    assert (wrapped.note, wrapped.geometry.optimizer) == ("kept", "adam")
    kind = type(wrapped)
    again = GeometryMixin.wrap(wrapped, Geometry("sgd"))
    assert (type(again), again.geometry.optimizer) == (kind, "sgd")
    assert type(GeometryMixin.wrap(Net(), Geometry())) is kind
    assert type(GeometryMixin.wrap(GeometryNet(), Geometry())) is GeometryNet


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # in torch.compile
def test_what_cannot_be_wrapped_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"GeometryMixin.wrap: expected a LightningModule, got Lin"
    ):
        GeometryMixin.wrap(nn.Linear(1, 1), Geometry())
    compiled = torch.compile(Net())
    with pytest.raises(ValueError, match=r"got OptimizedModule. .* before torch.compile"):
        GeometryMixin.wrap(compiled, Geometry())
    with pytest.raises(ValueError, match=r"expected a Geometry, got 'adam'. Write, say"):
        GeometryMixin.wrap(Net(), "adam")
    module = GeometryNet()
    module.geometry = "adam"
    with pytest.raises(ValueError, match=r"expected a Geometry, got 'adam'. Write, say"):
        fit(module, tmp_path)


class Quiet(GeometryNet):
    """What can be compiled."""

    def training_step(self, batch, batch_idx):
        return self.net(torch.ones(2, 3)).square().mean()


@pytest.mark.slow  # compiles
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # in torch.compile
def test_a_compiled_module_is_swapped_if_it_was_wrapped_before(tmp_path):
    plain, module = Quiet(), Quiet()
    fit(plain, tmp_path)
    trainer = fit(torch.compile(module, backend="eager"), tmp_path)
    assert isinstance(trainer.optimizers[0], Reparameterized)
    for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def assert_copies(module, path):
    torch.save(module, path)
    for twin in (
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
        torch.load(path, weights_only=False),
    ):
        assert type(twin) is type(module)
        assert twin.geometry == module.geometry
        assert_equal_weights(twin, module)


@pytest.mark.parametrize("wraps", [False, True])
def test_modules_can_be_copied_and_pickled_before_during_and_after_a_fit(tmp_path, wraps):
    module = GeometryMixin.wrap(Net(), Geometry("adam", rotation="row")) if wraps else GeometryNet()
    path = tmp_path / "module.pt"
    assert_copies(module, path)
    fit(module, tmp_path, [Hook(lambda trainer, module: assert_copies(module, path), 3)])
    assert_copies(module, path)
    twin = copy.deepcopy(module)
    for each in (module, twin):
        fit(each, tmp_path)
    assert_equal_weights(module, twin)


def _fit_there(module, tmp_path, queue):
    torch.set_num_threads(1)
    trainer = fit(module, tmp_path)
    queue.put((type(module).__name__, type(trainer.optimizers[0]).__name__))


@pytest.mark.slow  # a new process imports torch
def test_a_wrapped_module_can_be_sent_to_a_new_process(tmp_path):
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    module = GeometryMixin.wrap(Net(), Geometry("adam", rotation="row"))
    process = context.Process(target=_fit_there, args=(module, tmp_path, queue))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert queue.get() == ("GeometryNet", "Reparameterized")


def resume(make, callbacks, path, tmp_path, **options):
    module = make()
    trainer = fit(module, tmp_path, callbacks(), ckpt_path=path, **options)
    return module, trainer


class Swapping(GeometryMixin, Scheduled):
    """Swaps in a hook of its own, at step 4: first to other coordinates, at 6 back."""

    geometry = Geometry("adamw")
    at_4 = Geometry(rotation="global")

    def __init__(self):
        super().__init__(SCHEDULES["sequential"], SGD)

    def on_train_batch_start(self, batch, batch_idx):
        if self.trainer.global_step == 4 and len(self._swaps) == 1:
            self.swap_optimizer(self.at_4)
        if self.trainer.global_step == 6 and len(self._swaps) == 2:
            self.swap_optimizer(Geometry())


@pytest.mark.parametrize("step", [2, 4, 5, 6, 7])
def test_resumed_before_at_and_after_swaps_a_module_goes_on_to_the_last_bit(tmp_path, step):
    whole = Swapping()
    trainer = fit(whole, tmp_path, max_steps=9)
    assert type(trainer.optimizers[0]) is AdamW
    fit(Swapping(), tmp_path, max_steps=step).save_checkpoint(tmp_path / "part.ckpt")
    resumed, again = resume(Swapping, list, tmp_path / "part.ckpt", tmp_path, max_steps=9)
    assert again.global_step == 9
    assert_equal_weights(whole, resumed)
    assert resumed.rates == whole.rates[step:]
    states = [t.lr_scheduler_configs[0].scheduler.state_dict() for t in (trainer, again)]
    assert states[0]["_last_lr"] == states[1]["_last_lr"]
    states = [t.optimizers[0].state_dict() for t in (trainer, again)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(*(state["state"] for state in states), rtol=0, atol=0)


def test_one_of_two_optimizers_is_resumed_as_the_one_that_was_swapped(tmp_path):
    def make():
        return GeometryMixin.wrap(Gan(), Geometry())

    def swap():
        return [
            Hook(lambda t, m: len(m._swaps) > 1 or m.swap_optimizer(Geometry("signum"), index=1), 4)
        ]

    whole = make()
    fit(whole, tmp_path, swap(), max_steps=12)
    fit(make(), tmp_path, swap(), max_steps=8).save_checkpoint(tmp_path / "part.ckpt")
    resumed, trainer = resume(make, swap, tmp_path / "part.ckpt", tmp_path, max_steps=12)
    assert [type(o) for o in trainer.optimizers] == [SGD, Signum]
    assert_equal_weights(whole, resumed)


class SwappingToMap(Swapping):
    at_4 = Geometry("adam", rotation=Rotation("tensor", seed=9))


def test_a_swap_to_more_than_names_is_resumed_once_it_is_given_again(tmp_path):
    whole = SwappingToMap()
    fit(whole, tmp_path, max_steps=6)
    path = tmp_path / "part.ckpt"
    fit(SwappingToMap(), tmp_path, max_steps=5).save_checkpoint(path)
    message = (
        r"expected a checkpoint saved under AdamW, got one of AdamW, then Adam under Rotation"
        r".* Resume with that geometry and change it by SwapOptimizer, or load the weights alone"
    )
    with pytest.raises(MisconfigurationException, match=message):
        fit(SwappingToMap(), tmp_path, ckpt_path=path)
    resumed = SwappingToMap()
    resumed.geometry = SwappingToMap.at_4
    fit(resumed, tmp_path, ckpt_path=path, max_steps=6)
    assert_equal_weights(whole, resumed)


@pytest.mark.parametrize(
    ("saved", "own", "message"),
    [
        (None, Geometry("adam"), "saved under Adam, got one of a run without GeometryMixin"),
        (Geometry("adam"), Geometry("sgd"), "saved under SGD, got one of Adam, whose"),
        (Geometry("adam"), Geometry(), "saved under the same optimizer, got one of Adam"),
        (Geometry("adam", rotation="row"), Geometry("adam"), "under Adam, got one of Adam under R"),
        (Geometry(Adam, rotation=Rotation()), Geometry(SGD), "got one of Adam under Rotation"),
    ],
)
def test_a_checkpoint_of_another_geometry_is_refused(tmp_path, saved, own, message):
    module = Net() if saved is None else GeometryMixin.wrap(Net(), saved)
    fit(module, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    with pytest.raises(MisconfigurationException, match=message):
        fit(GeometryMixin.wrap(Net(), own), tmp_path, ckpt_path=tmp_path / "last.ckpt", max_steps=8)


@pytest.mark.parametrize(
    ("saved", "own"),
    [
        (None, Geometry()),
        (Geometry(Adam, rotation=Rotation()), Geometry(Adam, rotation=Rotation())),
        (Geometry("sgd", lr=0.3), Geometry("sgd", lr=0.1)),  # rates are those of the state
        (Geometry("adam"), Geometry(Adam)),
    ],
)
def test_a_checkpoint_of_the_same_geometry_is_resumed(tmp_path, saved, own):
    def make(geometry):
        return Net() if geometry is None else GeometryMixin.wrap(Net(), geometry)

    whole = make(saved)
    fit(whole, tmp_path)
    fit(make(saved), tmp_path, max_steps=3).save_checkpoint(tmp_path / "part.ckpt")
    resumed = make(own)
    fit(resumed, tmp_path, ckpt_path=tmp_path / "part.ckpt")
    assert_equal_weights(whole, resumed)


class Plain(Net):
    def __init__(self):
        super().__init__()


class GeometryPlain(GeometryMixin, Plain):
    geometry = Geometry("adam", rotation="global")


@pytest.mark.parametrize("weights_only", [True, False])
def test_the_weights_load_into_the_plain_module(tmp_path, weights_only):
    module = GeometryPlain()
    fit(module, tmp_path).save_checkpoint(tmp_path / "last.ckpt")
    for kind in (Plain, GeometryPlain):
        loaded = kind.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=weights_only)
        assert_equal_weights(module, loaded)
        fit(loaded, tmp_path)  # anew, in its own geometry


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",  # of jsonargparse, at Lightning's calls
    "ignore:.*configure_optimizers` will be overridden:UserWarning",
)
def test_lightning_cli_gives_the_optimizer_that_the_mixin_replaces(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse")
    arguments = [
        "--seed_everything=0",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.logger=false",
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_checkpointing=false",
        "--optimizer=SGD",
        "--optimizer.lr=0.07",
        "--optimizer.momentum=0.6",
        "--lr_scheduler=CosineAnnealingLR",
        "--lr_scheduler.T_max=10",
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", *arguments])
    cli = LightningCLI(GeometryPlain, save_config_callback=None)
    (optimizer,) = cli.trainer.optimizers
    assert isinstance(optimizer, Reparameterized)
    assert type(optimizer.inner) is Adam
    assert optimizer.param_groups[0]["lr"] == 0.07
    assert optimizer.param_groups[0]["betas"] == (0.6, 0.999)
    assert cli.trainer.lr_scheduler_configs[0].scheduler.optimizer is optimizer


class Keeping(Wrapper):
    """A scheduler with learning rates of its own, as other libraries have."""

    def __init__(self, scheduler):
        super().__init__(scheduler)
        self.held = scheduler.optimizer


def test_a_scheduler_that_would_set_the_rate_again_is_refused_beside_lr(tmp_path):
    module = Scheduled(lambda optimizer: Keeping(cosine(optimizer)))
    with pytest.raises(ValueError, match=r"a scheduler of torch beside `lr`, got Keeping.*Leave"):
        fit(module, tmp_path, [swapping(Geometry("adam", lr=0.2))])


def test_the_log_says_if_weight_decay_means_something_else(tmp_path, caplog):
    module = Net(lambda m: torch.optim.AdamW(m.parameters(), weight_decay=0.1))
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        fit(module, tmp_path, [swapping(Geometry("adam"), 2), swapping(Geometry("adasgd"), 4)])
    assert "a part of the gradient now (L2), no longer decoupled" in caplog.text
    assert "decoupled now, no longer a part of the gradient" in caplog.text


def test_groups_without_names_may_be_added_after_a_swap(tmp_path):
    module = Net(lambda m: SGD(m.net[0].parameters(), lr=0.1))

    def add(trainer, module):
        trainer.optimizers[0].add_param_group({"params": list(module.net[2].parameters())})

    fit(module, tmp_path, [swapping(Geometry("adam"), 2), Hook(add, 4)])
    assert len(module.trainer.optimizers[0].param_groups) == 2


def test_wrap_leaves_an_attribute_of_the_same_name_alone():
    module = Net(momentum_sgd)
    module.geometry = "a triangle"
    with pytest.raises(ValueError, match=r"without an attribute `geometry` .* SwapOptimizer\(0"):
        GeometryMixin.wrap(module, Geometry("adam"))
    assert type(module) is Net
