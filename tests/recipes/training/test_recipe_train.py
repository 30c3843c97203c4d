import dataclasses
import logging
import math

import pytest
import torch
from support.small_gpt2 import BETAS, trained_by_hand, trained_plainly

import gpt2
from lightning_linf.optim import AdaSGD, BlockwiseAdam, Reparameterized, Signum
from lightning_linf.reparam import Rotation
from training.losses import LossRecorder


@pytest.mark.parametrize(
    ("choices", "make"),
    [
        ({}, lambda groups: torch.optim.AdamW(groups, **BETAS)),
        ({"optimizer": "sgd"}, lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9)),
        ({"optimizer": "adasgd"}, lambda groups: AdaSGD(groups, **BETAS)),
        (
            {"optimizer": "blockwise_adam"},
            lambda groups: BlockwiseAdam(groups, **BETAS, partition="tensor"),
        ),
        ({"optimizer": "signum"}, lambda groups: Signum(groups, momentum=0.9)),
        (
            {"rotation": "global", "rotation_strength": 0.5},
            lambda groups: Reparameterized(
                groups,
                lambda params: torch.optim.AdamW(params, **BETAS),
                Rotation("global", strength=0.5),
            ),
        ),
        (
            {"optimizer": "adam", "rotation": "tensor", "weight_decay": 0.0},
            lambda groups: Reparameterized(
                groups, lambda params: torch.optim.Adam(params, **BETAS), Rotation("tensor")
            ),
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_a_geometry_trains_like_its_optimizer_in_a_plain_loop(config, choices, make):
    config = dataclasses.replace(config, max_steps=3, **choices)
    expected, _ = trained_by_hand(config, make)
    module = trained_plainly(config).lightning_module
    torch.testing.assert_close(module.state_dict(), expected.state_dict())


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_decay_of_adam_and_sgd_is_a_part_of_the_gradient(config, optimizer):
    decayed = trained_plainly(dataclasses.replace(config, optimizer=optimizer))
    (group, _) = decayed.optimizers[0].param_groups
    assert group["weight_decay"] == 0.1
    assert not group.get("decoupled_weight_decay", False)


PARTITIONS = ("coordinate", "row", "column", "head", "tensor", "module", "global")


ROTATIONS = ("global", "tensor", "row", "column")


@pytest.mark.slow
@pytest.mark.parametrize("rotation", [None, *ROTATIONS])
@pytest.mark.parametrize(
    "choices",
    [{"optimizer": name} for name in ("adam", "adamw", "sgd", "adasgd", "signum")]
    + [{"optimizer": "blockwise_adam", "partition": name} for name in PARTITIONS],
    ids=lambda choices: "-".join(choices.values()),
)
def test_every_optimizer_trains_in_every_coordinates(config, choices, rotation):
    trainer = trained_plainly(dataclasses.replace(config, rotation=rotation, **choices))
    assert math.isfinite(trainer.callback_metrics["val_loss"])
    optimizer = trainer.optimizers[0]
    if rotation is not None:
        assert optimizer.reparameterization == Rotation(rotation)
        optimizer = optimizer.inner
    assert type(optimizer).__name__.lower() == choices["optimizer"].replace("_", "")
    if "partition" in choices:
        partition = optimizer.partition
        assert getattr(partition, "name", partition) == choices["partition"]


def test_a_swap_halfway_starts_like_adamw_and_goes_on_otherwise(config):
    config = dataclasses.replace(config, max_steps=4)
    adamw = LossRecorder()
    swapped = LossRecorder()
    for recorder, changes in ((adamw, {}), (swapped, {"rotation": "global", "swap_at": 2})):
        trainer, module, data = gpt2.prepare(
            dataclasses.replace(config, **changes), [recorder], logger=False,
            enable_checkpointing=False, enable_progress_bar=False,
        )  # fmt: skip
        trainer.fit(module, data)
    assert swapped.losses[:3] == adamw.losses[:3]  # the third is that of the weights at the swap
    assert swapped.losses[3] != adamw.losses[3]


def test_the_rate_after_a_swap_keeps_the_schedule_from_a_peak_of_its_own(config):
    rates = {}
    for choices in ({}, {"optimizer": "sgd", "swap_at": 2, "swap_lr": 30 * config.lr}):
        trainer = trained_plainly(dataclasses.replace(config, max_steps=4, **choices))
        rates[len(choices)] = [group["lr"] for group in trainer.optimizers[0].param_groups]
    assert rates[3] == pytest.approx([30 * rate for rate in rates[0]])


def test_only_matrices_decay_and_the_rate_warms_up_and_falls_to_a_tenth(config):
    config = dataclasses.replace(config, max_steps=100, warmup_steps=9, lr=1.0)
    module = gpt2.GPT2(config)
    chosen = module.configure_optimizers()
    matrices, vectors = chosen["optimizer"].param_groups
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert matrices["betas"] == (0.9, 0.95)
    grouped = matrices["params"] + vectors["params"]
    assert {id(p) for p in grouped} == {id(p) for p in module.parameters()}
    assert len(grouped) == len(list(module.parameters()))

    assert chosen["lr_scheduler"]["interval"] == "step"
    (scale,) = set(chosen["lr_scheduler"]["scheduler"].lr_lambdas)
    assert [scale(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [scale(step) for step in (9 + 91 / 2, 100)] == pytest.approx([0.55, 0.1])


def test_what_lightning_recommends_is_not_printed_and_what_it_says_of_the_run_is(config, caplog):
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addHandler(caplog.handler)
    try:
        gpt2.prepare(config, [], logger=False)
    finally:
        logger.removeHandler(caplog.handler)
    said = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("GPU available") for line in said)
    assert not any("Tip: " in line for line in said)
