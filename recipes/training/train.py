"""Train a recipe's network: optimizer and schedule, Trainer, monitors, and the final summary."""

import logging
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from lightning_linf import Geometry, SwapOptimizer
from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor
from training.config import Prepare, TrainingConfig
from training.losses import LossHistory
from training.progress_bar import LossBar
from training.resume import find_checkpoint
from training.summary import print_summary


def make_optimizers(module: LightningModule, config: TrainingConfig) -> Any:
    """Make AdamW with a warm-up and a cosine; biases and gains, which are 1-D, do not decay."""
    matrices = [p for p in module.parameters() if p.ndim >= 2]
    vectors = [p for p in module.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": config.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=config.betas,
    )
    warmup, total = config.warmup_steps, config.max_steps

    def scale(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        # 1 -> 0.1; the scheduler asks once more after the last step
        return 0.55 + 0.45 * math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
    }


def make_strategy(config: TrainingConfig) -> str | Strategy:
    """Make the strategy that fsdp2 stands for; Lightning knows the other names by itself."""
    if config.strategy != "fsdp2":
        return config.strategy
    return ModelParallelStrategy(
        data_parallel_size=config.devices * config.num_nodes,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,  # one file, which any number of devices can load
    )


def make_trainer(config: TrainingConfig, callbacks: Sequence[Callback], **options: Any) -> Trainer:
    """Make the Trainer of a run; ``options`` are further arguments of it.

    Where the config chooses other than plain AdamW, `SwapOptimizer` exchanges the optimizer.
    """
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*dataloader is not resumable.*")  # the recipes' data is
    warnings.filterwarnings("ignore", ".*dirpath has changed.*")  # a resumed run has its own folder
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # inside Lightning
    for name in ("pytorch", "fabric"):  # by whichever was imported last
        logging.getLogger(f"lightning.{name}.utilities.rank_zero").addFilter(_is_no_advert)
    if not config.is_plain_adamw:
        geometry = Geometry(
            config.optimizer,
            config.partition,
            config.rotation,
            config.rotation_strength,
            lr=config.swap_lr,
        )
        callbacks = [SwapOptimizer(config.swap_at, geometry), *callbacks]
    return Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=make_strategy(config),
        precision=config.precision,
        callbacks=[*callbacks],
        max_steps=config.max_steps,
        max_epochs=1,  # the data's epoch is the whole run
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.gradient_clip_val or None,
        val_check_interval=min(config.val_every, config.max_steps) * config.accumulate,
        check_val_every_n_epoch=None,  # counts the line above over the run
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data shares itself out
        enable_model_summary=False,
        **options,
    )


def _is_no_advert(record: logging.LogRecord) -> bool:
    """Keep what Lightning says of a run, and not the products that it recommends."""
    return "Tip: " not in record.getMessage()


def train(config: TrainingConfig, prepare: Prepare, may_change: set[str], title: str) -> Trainer:
    """Train with monitors, and print what they measured.

    Args:
        config: Settings of the run.
        prepare: Makes trainer, module and data of a config (see `training.config.Prepare`).
        may_change: Fields that a resumed run may change.
        title: What trains; it is printed before the number of parameters.
    """
    checkpoint = find_checkpoint(config, may_change)
    heterogeneity = GradientHeterogeneityMonitor(every_n_steps=config.heterogeneity_every)
    smoothness = LinfSmoothnessMonitor(
        every_n_steps=config.smoothness_every,
        num_probes=config.num_probes,
        num_batches=config.probe_batches,
        max_overhead=None,  # with a limit the clock would choose the steps
    )
    losses = LossHistory(config.smoothness_every)
    last = ModelCheckpoint(
        filename="last", every_n_train_steps=config.checkpoint_every, enable_version_counter=False
    )
    best = ModelCheckpoint(filename="best", monitor="val_loss", enable_version_counter=False)
    trainer, module, data = prepare(
        config,
        [heterogeneity, smoothness, losses, last, best, LearningRateMonitor(), LossBar()],
        logger=TensorBoardLogger(config.runs_dir, name=config.name, default_hp_metric=False),
        log_every_n_steps=config.log_every,
    )
    if trainer.is_global_zero:
        num_params = sum(p.numel() for p in module.parameters())
        print(f"{title} with {num_params:,} parameters, {config.batch_size:,} samples a step")
        if config.smoothness_every <= config.max_steps:
            print(
                f"Every {config.smoothness_every} steps the geometry of the loss is measured; the "
                "bar stands still meanwhile"
            )
    trainer.fit(module, data, ckpt_path=checkpoint)
    path = Path(str(trainer.log_dir), "checkpoints", "last.ckpt")
    trainer.save_checkpoint(path, weights_only=False)
    if trainer.is_global_zero:
        classes = (_class_path(module), _class_path(data))
        print_summary(smoothness, heterogeneity.history, losses, config, path, classes)
    return trainer


def _class_path(thing: object) -> str:
    """Name a class as one imports it with the folder `recipes` on the path."""
    kind = type(thing)
    module = kind.__module__
    if module == "__main__":  # the recipe is the program that runs
        module = Path(str(sys.modules["__main__"].__file__)).stem
    return f"{module}.{kind.__name__}"
