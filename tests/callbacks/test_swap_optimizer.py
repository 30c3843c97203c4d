"""The callback swaps once, at its step, and goes on with that when it is resumed."""

import copy
import logging
import pickle
import sys

import lightning
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.tuner import Tuner
from support.swapping import (
    SCHEDULES,
    Gan,
    GeometryNet,
    Hook,
    Net,
    Scheduled,
    assert_equal_weights,
    assert_other_weights,
    fit,
    momentum_sgd,
    swapping,
)
from torch.optim import SGD, Adam, AdamW

from lightning_linf import Geometry, GeometryMixin, SwapOptimizer
from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor
from lightning_linf.optim import Reparameterized, Signum
from lightning_linf.reparam import Rotation

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*does not have many workers:UserWarning",
    "ignore:.*smaller than the logging interval:UserWarning",
    "ignore:.*a checkpoint that ended before the epoch ended:UserWarning",  # data follow the step
    "ignore:.*Checkpoint directory .* exists:UserWarning",
)
ROTATED = Geometry("adam", rotation="global", rotation_seed=1)


def scheduled():
    return Scheduled(SCHEDULES["sequential"], SGD)


def mixed():
    return GeometryMixin.wrap(scheduled(), Geometry("adamw"))


@pytest.mark.parametrize("step", [0, 1, 4])
@pytest.mark.parametrize("make", [Net, lambda: GeometryMixin.wrap(Net(), Geometry())])
def test_it_swaps_before_the_first_batch_of_its_step(tmp_path, make, step, caplog):
    module, by_hand = make(), Net()
    swap = SwapOptimizer(step, ROTATED)
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        trainer = fit(module, tmp_path, [swap])
    messages = [r.getMessage() for r in caplog.records if "swapped" in r.getMessage()]
    assert len(messages) == 1
    assert messages[0].startswith(f"Optimizer swapped at step {step}: SGD -> Adam under Rotation(")
    assert swap.is_done
    assert type(trainer.optimizers[0].inner) is Adam
    inner = trainer.optimizers[0].inner
    stepped = inner.param_groups[0]["params"][0]
    assert inner.state[stepped]["step"] == 6 - step  # Adam has no second moments of SGD
    fit(by_hand, tmp_path, [swapping(ROTATED, step)])
    assert_equal_weights(module, by_hand)


def test_steps_are_those_of_the_optimizer_when_batches_are_accumulated(tmp_path):
    module, by_hand = Net(), Net()
    fit(by_hand, tmp_path, [swapping(ROTATED, 2)], accumulate_grad_batches=3)
    fit(module, tmp_path, [SwapOptimizer(2, ROTATED)], accumulate_grad_batches=3)
    assert_equal_weights(module, by_hand)


@pytest.mark.parametrize("carry", [True, False])
def test_the_state_is_carried_over_or_starts_anew(tmp_path, carry):
    plain, module = Net(), Net()
    fit(plain, tmp_path)
    fit(module, tmp_path, [SwapOptimizer(3, Geometry(), carry=carry)])
    (assert_equal_weights if carry else assert_other_weights)(plain, module)


def to_map():
    return [SwapOptimizer(4, Geometry(AdamW, rotation=Rotation("tensor", seed=2)))]


def relative():
    """Listed out of order; the second keeps the class that the first chose."""
    return [
        SwapOptimizer(6, Geometry(rotation="global"), carry=True),
        SwapOptimizer(4, Geometry("adamw")),
    ]


@pytest.mark.parametrize("step", [2, 4, 5, 6, 7])
@pytest.mark.parametrize("callbacks", [to_map, relative])
@pytest.mark.parametrize("make", [scheduled, mixed])
def test_resumed_before_at_and_after_swaps_it_goes_on_to_the_last_bit(
    tmp_path, make, callbacks, step
):
    whole, part, resumed = make(), make(), make()
    trainer = fit(whole, tmp_path, callbacks(), max_steps=9)
    assert type(trainer.optimizers[0].inner) is AdamW
    path = tmp_path / "part.ckpt"
    with pytest.MonkeyPatch.context() as patch:  # the part is planned to be as long
        patch.setattr(SwapOptimizer, "on_train_start", lambda *_: None)
        fit(part, tmp_path, callbacks(), max_steps=step).save_checkpoint(path)
    again = fit(resumed, tmp_path, callbacks(), ckpt_path=path, max_steps=9)
    assert again.global_step == 9
    assert_equal_weights(whole, resumed)
    assert resumed.rates == whole.rates[step:]
    states = [t.optimizers[0].state_dict() for t in (trainer, again)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    torch.testing.assert_close(*(state["state"] for state in states), rtol=0, atol=0)
    # and from a checkpoint of the resumed run
    again.save_checkpoint(tmp_path / "resumed.ckpt")
    third = fit(make(), tmp_path, callbacks(), tmp_path / "resumed.ckpt", max_steps=10)
    assert type(third.optimizers[0].inner) is AdamW


def test_swaps_of_the_module_and_of_callbacks_are_resumed_in_their_order(tmp_path):
    def callbacks():
        swap = SwapOptimizer(6, Geometry(rotation=Rotation("row")))
        return [swap, Hook(lambda t, m: len(m._swaps) > 1 or m.swap_optimizer(Geometry("adam")), 4)]

    whole, resumed = mixed(), mixed()
    fit(whole, tmp_path, callbacks(), max_steps=9)
    fit(mixed(), tmp_path, callbacks(), max_steps=7).save_checkpoint(tmp_path / "part.ckpt")
    trainer = fit(resumed, tmp_path, callbacks(), tmp_path / "part.ckpt", max_steps=9)
    assert type(trainer.optimizers[0].inner) is Adam
    assert_equal_weights(whole, resumed)


@pytest.mark.parametrize("at_step", [0, 2])
def test_a_plain_run_is_resumed_with_a_swap_that_carries_its_state(tmp_path, at_step):
    whole, resumed = Net(), Net()
    fit(whole, tmp_path)
    fit(Net(), tmp_path, max_steps=3).save_checkpoint(tmp_path / "part.ckpt")
    said = []
    swaps = [
        SwapOptimizer(at_step + 1, Geometry()),
        SwapOptimizer(at_step, Geometry(rotation="row")),
    ]
    look = Hook(lambda trainer, module: said.append([swap.is_done for swap in swaps]), 3)
    trainer = fit(resumed, tmp_path, [*swaps, look], tmp_path / "part.ckpt")
    assert said == [[True, True]]  # both are due, in their order: rotated and back
    assert type(trainer.optimizers[0]) is SGD
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


class Three(torch.optim.Optimizer):
    """As Adan and AdEMAMix have them: three betas, of which the second is not that of squares."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01, "betas": (0.98, 0.92, 0.99), "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure()
        for p in self.param_groups[0]["params"]:
            self.state[p].setdefault("exp_avg", torch.zeros_like(p)).lerp_(p.grad, 0.02)
            self.state[p].setdefault("exp_avg_sq", torch.ones_like(p))
            self.state[p]["step"] = 1
            p.sub_(0.01 * p.grad)
        return loss


@pytest.mark.parametrize(
    ("geometry", "has"),
    [
        (Geometry("adamw"), {"betas": (0.9, 0.999)}),
        (Geometry("blockwise_adam", partition="row"), {"betas": (0.9, 0.999)}),
        (Geometry("adasgd", rotation="tensor"), {"betas": (0.9, 0.999)}),
        (Geometry(lambda groups: AdamW(groups, betas=(0.8, 0.9))), {"betas": (0.8, 0.9)}),
        (Geometry("signum"), {"momentum": 0.9}),
        (Geometry("sgd"), {"momentum": 0}),
        (Geometry("adamw", options={"betas": (0.7, 0.8)}), {"betas": (0.7, 0.8)}),
    ],
)
def test_three_betas_are_not_taken_for_two(tmp_path, caplog, geometry, has):
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        module = Net(lambda module: Three(module.parameters()))
        trainer = fit(module, tmp_path, [SwapOptimizer(2, geometry)])
    (optimizer,) = trainer.optimizers
    (group,) = optimizer.param_groups
    assert {key: group[key] for key in has} == has
    (line,) = [r.getMessage() for r in caplog.records if "swapped" in r.getMessage()]
    assert "; its state starts anew; it has " in line
    ((key, value),) = has.items()
    assert f"{key}={value} of its own: betas=(0.98, 0.92, 0.99) may mean something else" in line


def test_two_betas_are_not_taken_for_three(tmp_path, caplog):
    class Adan(Three):
        def __init__(self, params, lr=1e-3, betas=(0.98, 0.92, 0.99), weight_decay=0.0):
            super().__init__(params)

    adamw = Net(lambda module: AdamW(module.parameters(), lr=0.01))
    for make in (lambda: copy.deepcopy(adamw), lambda: Net(momentum_sgd)):
        with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
            trainer = fit(make(), tmp_path, [SwapOptimizer(2, Geometry(Adan))])
        assert trainer.optimizers[0].param_groups[0]["betas"] == (0.98, 0.92, 0.99)
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "of its own: betas=(0.9, 0.999) may mean something else" in said
    assert "of its own: momentum=0.9 may mean something else" in said


def test_a_callback_swaps_again_in_a_second_fit(tmp_path):
    swap = SwapOptimizer(3, ROTATED)
    first, second = Net(), Net()
    for module in (first, second):
        trainer = fit(module, tmp_path, [swap])
        assert isinstance(trainer.optimizers[0], Reparameterized)
    assert_equal_weights(first, second)
    trainer.fit_loop.epoch_loop.max_steps = 8  # the same trainer goes on
    trainer.fit(second)
    assert isinstance(trainer.optimizers[0], Reparameterized)


def test_a_checkpoint_after_another_swap_is_refused(tmp_path):
    """Before the swap, the choice may change."""
    path = tmp_path / "part.ckpt"
    fit(Net(), tmp_path, [SwapOptimizer(2, Geometry("adam"))]).save_checkpoint(path)
    message = r"SwapOptimizer: expected a checkpoint after a swap to Signum, got one after .* Adam"
    with pytest.raises(MisconfigurationException, match=message):
        fit(Net(), tmp_path, [SwapOptimizer(2, Geometry("signum"))], path, max_steps=8)
    save = Hook(lambda trainer, module: trainer.save_checkpoint(path), 3)
    fit(Net(), tmp_path, [SwapOptimizer(5, Geometry("adam")), save])
    trainer = fit(Net(), tmp_path, [SwapOptimizer(5, Geometry("signum"))], path)
    assert type(trainer.optimizers[0]) is Signum


def test_a_swap_of_a_run_without_the_mixin_is_not_resumed_with_it(tmp_path):
    path = tmp_path / "part.ckpt"
    fit(Net(), tmp_path, [SwapOptimizer(2, ROTATED)]).save_checkpoint(path)
    module = GeometryMixin.wrap(Net(), Geometry())
    with pytest.raises(MisconfigurationException, match="got one of a run without GeometryMixin"):
        fit(module, tmp_path, [SwapOptimizer(2, ROTATED)], path, max_steps=8)


def test_the_checkpoint_loads_with_weights_only(tmp_path):
    path = tmp_path / "last.ckpt"
    fit(GeometryNet(), tmp_path, to_map()).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    (state,) = [v for k, v in checkpoint["callbacks"].items() if "SwapOptimizer" in k]
    assert state == {"is_done": True, "geometry": to_map()[0].geometry.describe()}


@pytest.mark.parametrize("limits", [{"max_steps": 3}, {"max_epochs": 1, "max_steps": -1}])
def test_a_step_that_is_never_reached_is_said(tmp_path, limits):
    with pytest.warns(UserWarning, match="`at_step`=3 is not before the last of 3 steps, so noth"):
        fit(Net(), tmp_path, [SwapOptimizer(3, ROTATED)], limit_train_batches=3, **limits)


@pytest.mark.parametrize("fast_dev_run", [True, 3])
@pytest.mark.filterwarnings("ignore:.*fast_dev_run:UserWarning")
def test_a_development_run_swaps_at_once(tmp_path, fast_dev_run):
    swaps = [SwapOptimizer(1000, Geometry("signum")), SwapOptimizer(500, ROTATED)]
    trainer = fit(Net(), tmp_path, swaps, max_steps=-1, fast_dev_run=fast_dev_run)
    assert [swap.is_done for swap in swaps] == [True, True]
    assert type(trainer.optimizers[0]) is Signum


@pytest.mark.filterwarnings("ignore:.*barebones:UserWarning")
def test_it_works_in_a_bare_trainer(tmp_path):
    class Silent(Net):
        def log(self, *args, **kwargs):
            pass

    bare = {"barebones": True, "enable_progress_bar": False, "logger": False}
    module = GeometryMixin.wrap(Silent(), Geometry("adamw"))
    trainer = fit(module, tmp_path, [SwapOptimizer(3, ROTATED)], **bare)
    assert isinstance(trainer.optimizers[0], Reparameterized)


def test_several_optimizers_are_swapped_at_the_step_that_the_trainer_counts(tmp_path):
    trainer = fit(Gan(), tmp_path, [SwapOptimizer(4, Geometry("signum"))], max_steps=8)
    assert [type(optimizer) for optimizer in trainer.optimizers] == [Signum, Signum]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint:UserWarning")
@pytest.mark.parametrize("make", [scheduled, mixed])
def test_learning_rate_monitors_and_checkpoints_follow(tmp_path, make):
    logger = CSVLogger(tmp_path)
    monitor = LearningRateMonitor(log_momentum=True, log_weight_decay=True)
    checkpoints = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=2, save_top_k=-1)
    module = make()
    options = {"logger": logger, "log_every_n_steps": 1, "enable_checkpointing": True}
    fit(module, tmp_path, [SwapOptimizer(3, ROTATED), monitor, checkpoints], **options)
    first = "SGD" if make is scheduled else "AdamW"
    names = {key.split("/")[0] for key in monitor.lrs}
    assert names == {f"lr-{first}", "lr-Reparameterized"}
    rates = [monitor.lrs[f"lr-{kind}/pg1"] for kind in (first, "Reparameterized")]
    assert [len(rate) for rate in rates] == [3, 3]
    assert [*rates[0], *rates[1]] == [rate[0] for rate in module.rates]
    resumed = make()
    (path,) = (tmp_path / "kept").glob("*step=4.ckpt")
    fit(resumed, tmp_path, [SwapOptimizer(3, ROTATED)], path)
    assert_equal_weights(module, resumed)


@pytest.mark.filterwarnings("ignore:.*fast_dev_run:UserWarning")
@pytest.mark.parametrize("make", [Net, GeometryNet])
def test_averages_of_weights_are_taken_beside_it(tmp_path, make):
    def average():
        callbacks = [StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)]
        if hasattr(lightning.pytorch.callbacks, "EMAWeightAveraging"):
            callbacks.append(lightning.pytorch.callbacks.EMAWeightAveraging(decay=0.9))
        return callbacks

    options = {"max_epochs": 4, "max_steps": -1, "limit_train_batches": 2}
    for callback, twin in zip(average(), average(), strict=True):
        plain, module = make(), make()
        fit(plain, tmp_path, [callback], **options)
        same = make.geometry if make is GeometryNet else Geometry()
        fit(module, tmp_path, [twin, SwapOptimizer(5, same)], **options)
        assert_equal_weights(plain, module)
        assert module.rates == plain.rates
        trainer = fit(make(), tmp_path, [twin, SwapOptimizer(5, Geometry("signum"))], **options)
        assert type(trainer.optimizers[0]) is Signum


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # of the finder
def test_the_learning_rate_finder_leaves_the_swap_to_the_fit(tmp_path):
    class Found(GeometryNet):
        def __init__(self):
            super().__init__(lambda module: SGD(module.parameters(), lr=module.lr))
            self.lr = 0.1

    module = Found()
    trainer = lightning.Trainer(
        max_steps=6,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
        callbacks=[SwapOptimizer(3, Geometry("signum"))],
    )
    before = copy.deepcopy(module)
    Tuner(trainer).lr_find(module, num_training=30, early_stop_threshold=None)
    assert_equal_weights(module, before)
    assert module.lr != 0.1
    trainer.fit(module)
    assert type(trainer.optimizers[0]) is Signum
    assert [swap["description"][:5] for swap in module._swaps] == ["AdamW", "Signu"]
    assert trainer.optimizers[0].param_groups[0]["lr"] == module.lr


def test_monitors_go_on_after_a_swap_and_leave_it_as_it_is(tmp_path):
    monitors = [
        GradientHeterogeneityMonitor(1, on_error="raise"),
        LinfSmoothnessMonitor(1, num_probes=4, on_error="raise", max_overhead=None),
    ]
    plain, module = Net(), Net()
    fit(plain, tmp_path, [SwapOptimizer(3, ROTATED)])
    fit(module, tmp_path, [*monitors, SwapOptimizer(3, ROTATED)])
    assert_equal_weights(plain, module)
    for monitor in monitors:
        assert [entry["step"] for entry in monitor.history] == list(range(6))


@pytest.mark.parametrize("make", [Gan, lambda: GeometryMixin.wrap(Gan(), Geometry())])
@pytest.mark.parametrize("index", [0, 1])
def test_one_of_several_optimizers_is_swapped_and_resumed(tmp_path, make, index):
    def callbacks():
        return [SwapOptimizer(4, Geometry("signum"), index=index)]

    kinds = [Signum if i == index else kind for i, kind in enumerate((SGD, Adam))]
    whole, resumed, path = make(), make(), tmp_path / "part.ckpt"
    fit(whole, tmp_path, callbacks(), max_steps=12)
    fit(make(), tmp_path, callbacks(), max_steps=8).save_checkpoint(path)
    trainer = fit(resumed, tmp_path, callbacks(), path, max_steps=12)
    assert [type(optimizer) for optimizer in trainer.optimizers] == kinds
    assert_equal_weights(whole, resumed)


def test_each_of_two_optimizers_may_be_swapped_at_the_same_step(tmp_path):
    swaps = [SwapOptimizer(4, Geometry("adamw", rotation="tensor"), index=1)]
    swaps.append(SwapOptimizer(4, Geometry("signum"), index=0))
    trainer = fit(Gan(), tmp_path, swaps, max_steps=8)
    assert [type(optimizer) for optimizer in trainer.optimizers] == [Signum, Reparameterized]


@pytest.mark.parametrize("make", [Net, lambda: GeometryMixin.wrap(Net(), Geometry())])
@pytest.mark.parametrize(
    ("swap", "message"),
    [
        ((4, Geometry("blockwise_adam", partition="head")), "expected attention with trainable"),
        ((4, Geometry("adam", options={"eps": -1.0})), "Invalid epsilon"),
        ((4, Geometry("adam"), True, 1), "`index` of one of 1 optimizers, got 1. Count from 0"),
    ],
)
def test_what_would_end_the_training_at_its_step_is_refused_before(tmp_path, make, swap, message):
    module = make()
    with pytest.raises(ValueError, match=message):
        fit(module, tmp_path, [SwapOptimizer(*swap)])
    assert module.rates == []


def test_what_may_have_other_parameters_by_then_is_only_told(tmp_path):
    """And lazy ones, which the first batch makes, are not looked at."""
    module = Net()
    module.attention = torch.nn.MultiheadAttention(2, 1).requires_grad_(False)
    swap = SwapOptimizer(2, Geometry("blockwise_adam", partition="head"))
    thaw = Hook(lambda trainer, module: module.attention.requires_grad_(), 1)
    with pytest.warns(UserWarning, match=r"swap at step 2 will fail, unless.*expected attention"):
        trainer = fit(module, tmp_path, [thaw, swap])
    assert trainer.optimizers[0].partition.name == "head"

    lazy = Lazy()
    fit(lazy, tmp_path, [SwapOptimizer(4, Geometry("blockwise_adam", partition="row"))])
    assert len(lazy.rates) == 6


class Lazy(Net):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.LazyLinear(5), torch.nn.Tanh(), torch.nn.Linear(5, 2)
        )


def test_lazy_parameters_are_refused_where_a_geometry_needs_their_shapes(tmp_path):
    for geometry in (Geometry(rotation="global"), Geometry("blockwise_adam", partition="row")):
        with pytest.raises(ValueError, match=r"lazy.* Run the module once"):
            fit(GeometryMixin.wrap(Lazy(), geometry), tmp_path)

    class Ready(Lazy):
        def configure_model(self):
            self.net(torch.zeros(1, 3))

    for geometry in (Geometry(rotation="global"), Geometry("blockwise_adam", partition="row")):
        module = GeometryMixin.wrap(Ready(), geometry)
        fit(module, tmp_path)
        assert len(module.rates) == 6


def test_strategies_with_flat_parameters_are_refused():
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(MisconfigurationException, match=r"got FSDPStrategy.*and fully_shard"):
        SwapOptimizer(0, ROTATED).setup(trainer, Net(), "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, ROTATED), "SwapOptimizer: expected `at_step` >= 0, got -1. 0 swaps at once"),
        ((3, "adam"), "SwapOptimizer: expected a Geometry, got 'adam'. Write, say"),
        ((3, ROTATED, True, -1), "expected `index` >= 0 or None, got -1. Count from 0"),
    ],
)
def test_misuse_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SwapOptimizer(*arguments)


def test_two_swaps_at_one_step_are_refused():
    swaps = [SwapOptimizer(3, ROTATED), SwapOptimizer(3, Geometry("sgd"))]
    with pytest.raises(
        RuntimeError, match="more than one stateful callback of type `SwapOptimizer`"
    ):
        lightning.Trainer(callbacks=swaps, logger=False, enable_checkpointing=False)


def test_it_can_be_pickled():
    swap = pickle.loads(pickle.dumps(SwapOptimizer(3, ROTATED)))
    assert (swap.at_step, swap.geometry) == (3, ROTATED)


CONFIG = """
seed_everything: 0
trainer:
  accelerator: cpu
  logger: false
  max_steps: 4
  enable_progress_bar: false
  enable_model_summary: false
  enable_checkpointing: false
  callbacks:
    - class_path: lightning_linf.callbacks.SwapOptimizer
      init_args:
        at_step: 1
        geometry:
          optimizer: blockwise_adam
          partition: row
          rotation: tensor
          rotation_seed: 3
          options: {betas: [0.8, 0.9]}
    - class_path: SwapOptimizer
      init_args:
        at_step: 2
        geometry:
          optimizer: torch.optim.RMSprop
          lr: 0.5
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jsonargparse, at Lightning's calls
def test_lightning_cli_builds_it_from_a_file(tmp_path, monkeypatch):
    pytest.importorskip("jsonargparse", reason="LightningCLI needs jsonargparse")
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    arguments = [
        "fit",
        f"--config={tmp_path / 'config.yaml'}",
        f"--trainer.default_root_dir={tmp_path}",
    ]
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments])

    class Default(Net):
        def __init__(self):
            super().__init__(momentum_sgd)

    cli = LightningCLI(Default, save_config_callback=None)
    swaps = [c for c in cli.trainer.callbacks if isinstance(c, SwapOptimizer)]
    expected = Geometry(
        "blockwise_adam",
        partition="row",
        rotation="tensor",
        rotation_seed=3,
        options={"betas": [0.8, 0.9]},
    )
    assert swaps[0].geometry == expected
    assert swaps[0].geometry.to_plain() is not None
    (optimizer,) = cli.trainer.optimizers
    assert type(optimizer) is torch.optim.RMSprop
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint:UserWarning")
def test_a_rotated_checkpoint_is_refused_without_the_swap_that_was_made(tmp_path):
    path = tmp_path / "rotated.ckpt"
    trainer = fit(scheduled(), tmp_path, [SwapOptimizer(2, ROTATED)])
    trainer.save_checkpoint(path)
    with pytest.raises((KeyError, MisconfigurationException)):  # torch or we, whoever reads first
        fit(scheduled(), tmp_path, [SwapOptimizer(4, ROTATED)], ckpt_path=path, max_steps=9)
