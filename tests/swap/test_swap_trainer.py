"""A swap replaces the optimizer everywhere, keeps what it must, or refuses and changes nothing."""

import logging

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from support.swapping import (
    SCHEDULES,
    Gan,
    Hook,
    Net,
    Scheduled,
    Wrapper,
    assert_equal_weights,
    assert_other_weights,
    cosine,
    fit,
    momentum_sgd,
    quiet,
    rotated,
    swapping,
    two_groups,
)
from torch.amp import GradScaler
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as schedulers

from lightning_linf import Geometry, GeometryMixin, Partition
from lightning_linf.optim import BlockwiseAdam, Reparameterized
from lightning_linf.reparam import Rotation
from lightning_linf.swap.trainer import swap_optimizers

pytestmark = quiet
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


def fused(module):
    return AdamW(module.parameters(), lr=0.01, fused=True)


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
