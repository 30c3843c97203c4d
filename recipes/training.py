"""What the training recipes share: choices, optimizer and schedule, Trainer and monitors."""

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from lightning_linf import Geometry, SwapOptimizer
from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor
from report import LossHistory, print_report
from settings import check_fields, find_checkpoint, refuse_unless


@dataclass(frozen=True)
class TrainingConfig:
    """Choices that every training recipe has; each adds those of its data and its network."""

    name: str = "run"
    """Folder of the run under runs_dir."""
    data: str = ""
    """Where the data comes from."""
    batch_size: int = 16
    """Samples an optimizer step, over all devices and accumulated micro-batches."""
    micro_batch: int = 16
    """Samples a device takes at a time: as many as fit in its memory."""
    max_steps: int = 500
    """Optimizer steps."""
    optimizer: Literal["adam", "adamw", "sgd", "adasgd", "blockwise_adam", "signum"] = "adamw"
    """adasgd has one g^2 for all parameters, blockwise_adam one a block; sgd: momentum betas[0]."""
    partition: (
        Literal["coordinate", "row", "column", "head", "tensor", "module", "global"] | None
    ) = None
    """Blocks of blockwise_adam; by default tensor."""
    rotation: Literal["global", "tensor", "row", "column"] | None = None
    """Random rotation to run in; global: of all matrices, of all vectors; row: of stored rows."""
    rotation_strength: float = 1.0
    """From 0, the parameters' own coordinates, to 1, fully rotated ones."""
    swap_at: int = 0
    """Step at which optimizer, partition and rotation replace plain AdamW."""
    swap_lr: float | None = None
    """Peak learning rate from that step on; by default lr."""
    lr: float = 3e-3
    """Peak learning rate; a smaller model takes more, and sgd 100 to 300 times as much."""
    warmup_steps: int = 20
    """Steps of linear warm-up, before a cosine down to a tenth of the peak at max_steps."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's memory of g and of g^2; 0.95 forgets a spike of g^2 sooner than the usual 0.999."""
    weight_decay: float = 0.1
    """Decay of matrices: decoupled, but in adam and sgd coupled (L2), so a part of the gradient."""
    gradient_clip_val: float = 1.0
    """Largest gradient norm; 0 does not clip."""
    val_every: int = 100
    """Steps between validations (or max_steps, if that is less)."""
    log_every: int = 10
    """Steps between points of the training loss in TensorBoard."""
    checkpoint_every: int = 100
    """Steps between checkpoints: what an interrupted run can lose."""
    heterogeneity_every: int = 10
    """Steps between measurements of the gradient's heterogeneity, which are nearly free."""
    smoothness_every: int = 100
    """Steps between measurements of the smoothness; one costs about 100 micro-batches."""
    num_probes: int = 16
    """Hessian-vector products behind a (1,1)-norm, whose error falls with their square root."""
    probe_batches: int = 1
    """Micro-batches that a probe averages over."""
    seed: int = 0
    """Fixes the initial weights and the order of the data."""
    accelerator: str = "auto"
    """cpu, gpu, or whatever is there."""
    devices: int = 1
    """Devices on each machine."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """Lightning's name for a way to share the work, such as ddp; fsdp2 shares memory out, too."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Mixed precisions keep the weights in 32 bits, in which the smoothness is measured."""
    runs_dir: str = "runs"
    """Where curves and checkpoints go: runs_dir/name/version_N."""
    resume: str | None = None
    """Checkpoint to go on from, or last for the newest one of this name."""

    def __post_init__(self) -> None:
        check_fields(self, may_be_zero={"seed", "warmup_steps", "swap_at"})
        share = self.micro_batch * self.devices * self.num_nodes
        refuse_unless(self, (
            ("batch_size", self.batch_size % share == 0,
             f"a multiple of {share} = micro_batch x devices x num_nodes",
             "Change --batch_size or --micro_batch."),
            ("precision", self.strategy != "fsdp2" or self.precision != "16-mixed",
             "32-true or bf16-mixed beside --strategy fsdp2", "Choose --precision bf16-mixed."),
            ("partition", self.partition is None or self.optimizer == "blockwise_adam",
             f"none beside --optimizer {self.optimizer}", "Choose --optimizer blockwise_adam."),
            ("rotation_strength", 0 <= self.rotation_strength <= 1, "in [0, 1]", "Try 1."),
            ("rotation_strength", self.rotation is not None or self.rotation_strength == 1,
             "1 without a rotation", "Add, say, --rotation global."),
            ("swap_at", self.is_plain_adamw or 0 <= self.swap_at < self.max_steps,
             f"at least 0 and less than max_steps={self.max_steps}", "Lower it."),
            ("swap_at", not self.is_plain_adamw or self.swap_at == 0,
             "0 where all is plain AdamW", "Choose an --optimizer or a --rotation to change to."),
            ("swap_lr", self.swap_lr is None or self.swap_at > 0,
             "none without --swap_at", "Set --lr, or the step by --swap_at."),
            ("swap_lr", self.swap_lr is None or self.swap_lr > 0, "more than 0", "Try 1."),
            ("lr", self.lr > 0, "more than 0", "Try 1e-3."),
            ("warmup_steps", 0 <= self.warmup_steps < self.max_steps,
             f"at least 0 and less than max_steps={self.max_steps}",
             "Lower it, or raise --max_steps."),
            ("betas", all(0 <= b < 1 for b in self.betas), "two in [0, 1)", "Try [0.9,0.95]."),
            ("weight_decay", self.weight_decay >= 0, "at least 0", "Try 0.1."),
            ("gradient_clip_val", self.gradient_clip_val >= 0, "at least 0", "Try 1."),
            ("num_probes", self.num_probes >= 4, "at least 4", "Try 16."),
            ("seed", 0 <= self.seed < 2**32, "in [0, 2^32)", "Try 0."),
        ))  # fmt: skip

    @property
    def accumulate(self) -> int:
        """Micro-batches that every device adds up for a step."""
        return self.batch_size // (self.micro_batch * self.devices * self.num_nodes)

    @property
    def is_plain_adamw(self) -> bool:
        """Whether the optimizer that the module configures stays."""
        return self.optimizer == "adamw" and self.rotation is None

    def data_id(self) -> str:
        """Name the content of the data, which is a part of what a run is."""
        raise NotImplementedError


ConfigT = TypeVar("ConfigT", bound=TrainingConfig)
Prepared = tuple[Trainer, LightningModule, LightningDataModule]
Prepare = Callable[..., Prepared]  # of a config, callbacks, and options of the Trainer
MAY_CHANGE_ON_RESUME = {
    "name", "val_every", "log_every", "checkpoint_every", "heterogeneity_every",
    "smoothness_every", "num_probes", "probe_batches", "accelerator", "strategy", "precision",
    "runs_dir", "resume",
}  # fmt: skip


def make_optimizers(module: LightningModule, config: TrainingConfig) -> Any:
    """AdamW with warm-up and cosine. Biases and gains, which are 1-D, do not decay."""
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
    """Translate fsdp2; Lightning knows the other names."""
    if config.strategy != "fsdp2":
        return config.strategy
    return ModelParallelStrategy(
        data_parallel_size=config.devices * config.num_nodes,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,  # one file, which any number of devices can load
    )


def make_trainer(config: TrainingConfig, callbacks: Sequence[Callback], **options: Any) -> Trainer:
    """Make the Trainer, with the geometry that is chosen; ``options`` are further ones of it."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # the data is in memory
    warnings.filterwarnings("ignore", ".*dataloader is not resumable.*")  # the recipes' data is
    warnings.filterwarnings("ignore", ".*dirpath has changed.*")  # a resumed run has its own folder
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # inside Lightning
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


def train(config: TrainingConfig, prepare: Prepare, may_change: set[str], title: str) -> Trainer:
    """Train with monitors, and say what was measured.

    Args:
        config: Choices of the run.
        prepare: Makes trainer, module and data of a config, callbacks and options of the Trainer.
        may_change: Fields that a resumed run may change.
        title: What trains, said before the number of its parameters.
    """
    checkpoint = find_checkpoint(config, may_change)
    heterogeneity = GradientHeterogeneityMonitor(every_n_steps=config.heterogeneity_every)
    smoothness = LinfSmoothnessMonitor(
        every_n_steps=config.smoothness_every,
        num_probes=config.num_probes,
        num_batches=config.probe_batches,
    )
    losses = LossHistory(config.smoothness_every)
    last = ModelCheckpoint(
        filename="last", every_n_train_steps=config.checkpoint_every, enable_version_counter=False
    )
    best = ModelCheckpoint(filename="best", monitor="val_loss", enable_version_counter=False)
    trainer, module, data = prepare(
        config,
        [heterogeneity, smoothness, losses, last, best, LearningRateMonitor(), RichProgressBar()],
        logger=TensorBoardLogger(config.runs_dir, name=config.name, default_hp_metric=False),
        log_every_n_steps=config.log_every,
    )
    if trainer.is_global_zero:
        number = sum(p.numel() for p in module.parameters())
        print(f"{title} with {number:,} parameters, {config.batch_size:,} samples a step")
    trainer.fit(module, data, ckpt_path=checkpoint)
    path = Path(str(trainer.log_dir), "checkpoints", "last.ckpt")
    trainer.save_checkpoint(path, weights_only=False)
    if trainer.is_global_zero:
        classes = (_class_path(module), _class_path(data))
        print_report(smoothness, heterogeneity.history, losses, config, path, classes)
    return trainer


def _class_path(thing: object) -> str:
    """Name a class of a recipe as its folder's files are imported."""
    kind = type(thing)
    module = kind.__module__
    if module == "__main__":  # the recipe itself is the program
        module = Path(str(sys.modules["__main__"].__file__)).stem
    return f"{module}.{kind.__name__}"
