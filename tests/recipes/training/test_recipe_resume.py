import dataclasses
import re
from pathlib import Path

import pytest
import torch
from support.small_gpt2 import logged

import gpt2
from settings import RecipeError


def interrupted_and_resumed(config, monkeypatch, *, at_step, file="last.ckpt"):
    class Interruption(Exception):
        pass

    def interrupt(self, batch, batch_idx):
        if self.global_step == at_step:
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(gpt2.GPT2, "on_train_batch_start", interrupt)
        with pytest.raises(Interruption):
            gpt2.main(dataclasses.replace(config, name="interrupted"))
    checkpoint = Path(config.runs_dir, "interrupted", "version_0", "checkpoints", file)
    return gpt2.main(dataclasses.replace(config, name="interrupted", resume=str(checkpoint)))


def assert_same_weights(trainer, other):
    for (name, weight), (_, expected) in zip(
        trainer.model.named_parameters(), other.model.named_parameters(), strict=True
    ):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "checkpoint_every", "first"),
    [
        ("last.ckpt", 3, 3),  # between two validations
        ("last.ckpt", 2, 4),  # just before the validation of the same step
        ("best.ckpt", 3, 4),  # just after it
    ],
)
def test_a_run_resumed_in_the_middle_equals_one_in_one_go(
    config, monkeypatch, file, checkpoint_every, first
):
    config = dataclasses.replace(
        config, max_steps=6, checkpoint_every=checkpoint_every, val_every=2, smoothness_every=2
    )
    whole = gpt2.main(config)
    resumed = interrupted_and_resumed(config, monkeypatch, at_step=5, file=file)
    assert_same_weights(resumed, whole)
    for tag, steps in (
        ("train_loss", range(6)),
        ("val_loss", (1, 3, 5)),
        ("lr-AdamW/pg1", range(6)),
        ("geometry/density", range(6)),
        ("geometry/one_one_norm_per_param", (1, 3, 5)),
    ):
        before, after = logged(whole, tag), logged(resumed, tag)
        assert set(before) == set(steps), tag
        assert after == {step: before[step] for step in steps if step >= first}, tag
    assert len(set(logged(whole, "train_loss").values())) == 6  # the batches are different ones
    histories = [
        [callback.history for callback in trainer.callbacks if hasattr(callback, "history")]
        for trainer in (whole, resumed)
    ]
    for old, new in zip(*histories, strict=True):
        assert [row["step"] for row in old] == [row["step"] for row in new]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("choices", "checkpoint_every", "at_step"),
    [
        ({"optimizer": "adam", "rotation": "global"}, 2, 5),
        ({"optimizer": "blockwise_adam", "partition": "row", "rotation": "tensor"}, 2, 5),
        ({"optimizer": "adasgd"}, 2, 5),
        *(
            ({**choices, "swap_at": 3}, checkpoint_every, at_step)
            for choices in (
                {"optimizer": "adamw", "rotation": "column"},
                {"optimizer": "blockwise_adam", "partition": "head"},
                {"optimizer": "sgd", "swap_lr": 0.3},
            )
            for checkpoint_every, at_step in ((2, 3), (3, 5), (2, 5))  # before, at, after the swap
        ),
    ],
)
def test_a_resumed_run_in_another_geometry_equals_one_in_one_go(
    config, monkeypatch, choices, checkpoint_every, at_step
):
    config = dataclasses.replace(
        config, max_steps=6, checkpoint_every=checkpoint_every, smoothness_every=6, **choices
    )
    whole = gpt2.main(config)
    resumed = interrupted_and_resumed(config, monkeypatch, at_step=at_step)
    assert_same_weights(resumed, whole)
    before, after = (logged(trainer, "train_loss") for trainer in (whole, resumed))
    first = at_step - at_step % checkpoint_every
    assert after == {step: before[step] for step in range(first, 6)}


def test_last_means_the_newest_checkpoint_of_the_name(config):
    finished = gpt2.main(config)
    newest = Path(finished.log_dir) / "checkpoints" / "last.ckpt"
    with pytest.raises(RecipeError, match=re.escape(f"steps left, got '{newest}'")):
        gpt2.main(dataclasses.replace(config, resume="last"))


def test_resume_refusals(config, tmp_path):
    def resume(**changes):
        return gpt2.main(dataclasses.replace(config, **changes))

    with pytest.raises(RecipeError, match="resume: expected a checkpoint, or 'last' with"):
        resume(resume="last")
    broken = tmp_path / "broken.ckpt"
    broken.write_text("not a checkpoint")
    with pytest.raises(RecipeError, match="expected a checkpoint of this recipe"):
        resume(resume=str(broken))
    other = tmp_path / "other.ckpt"
    torch.save({"state_dict": {}}, other)
    with pytest.raises(RecipeError, match=r"of this recipe, got .*other.ckpt.*KeyError"):
        resume(resume=str(other))
    saved = {"config": dataclasses.asdict(config)}
    torch.save({"hyper_parameters": saved, "global_step": 1}, other)
    with pytest.raises(RecipeError, match="strategy: expected 'auto' as in the run of"):
        resume(resume=str(other), strategy="fsdp2")
    torch.save({"hyper_parameters": saved, "global_step": 2}, other)
    with pytest.raises(RecipeError, match=r"has some of its 2 steps left, got .* complete"):
        resume(resume=str(other))
    with pytest.raises(RecipeError, match=r"lr: expected 0.01 as in the run of .* got 0.5"):
        resume(resume=str(other), lr=0.5)
    for changes in (
        {"optimizer": "sgd"}, {"optimizer": "blockwise_adam", "partition": "row"},
        {"rotation": "global"},
    ):  # fmt: skip
        name, value = next(iter(changes.items()))
        with pytest.raises(RecipeError, match=f"{name}: expected .* got '{value}'"):
            resume(resume=str(other), **changes)
