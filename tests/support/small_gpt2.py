"""Trainings of a small GPT-2, by the recipe and by hand."""

import types

import support.recipes  # noqa: F401  # makes recipes/ importable, or skips this file
import torch

import gpt2
from data import token_data

BETAS = {"betas": (0.9, 0.95)}


def logged(trainer, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(trainer.log_dir)).Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def trained_plainly(config):
    """Fit without monitors, loggers and checkpoints."""
    trainer, module, data = gpt2.prepare(
        config, [], logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(module, data)
    assert trainer.global_step == config.max_steps
    return trainer


def trained_by_hand(config, make):
    """Train with the optimizer that ``make`` gives for the parameter groups, without Lightning.

    Returns the module and the loss of every step.
    """
    torch.manual_seed(config.seed)
    module = gpt2.GPT2(config)
    plain = module.configure_optimizers()
    (scale, _) = plain["lr_scheduler"]["scheduler"].lr_lambdas
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in plain["optimizer"].param_groups
    ]
    optimizer = make(groups)
    batches, _ = sequences(
        config.data, config.cache_dir, micro_batch=config.micro_batch, max_steps=config.max_steps
    )
    losses = []
    for step in range(config.max_steps):
        losses.append(0.0)
        for batch in batches[step * config.accumulate : (step + 1) * config.accumulate]:
            loss = module.loss(batch) / config.accumulate
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(module.parameters(), config.gradient_clip_val)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * scale(step)
        optimizer.step()
        optimizer.zero_grad()
    return module, losses


def sequences(texts, cache_dir, *, rank=0, num_ranks=1, micro_batch=4, step=0, max_steps=5):
    data = token_data.TokenData(
        data=str(texts), cache_dir=str(cache_dir), vocab_size=300, val_fraction=0.2,
        sequence_length=16, batch_size=4, micro_batch=micro_batch, max_steps=max_steps,
        val_sequences=3, seed=0,
    )  # fmt: skip
    data.trainer = types.SimpleNamespace(
        global_step=step, global_rank=rank, world_size=num_ranks, **{"lightning_module": None}
    )
    data.prepare_data()
    data.setup("fit")
    return list(data.train_dataloader()), list(data.val_dataloader())


class Prepare:
    """Prepare runs, note their learning rates, and stop before the one with number ``end``."""

    def __init__(self, end=None):
        self.rates = []
        self.end = end

    def __call__(self, config, callbacks, **options):
        if len(self.rates) == self.end:
            raise KeyboardInterrupt
        self.rates.append(config.lr)
        return gpt2.prepare(config, callbacks, **options)
