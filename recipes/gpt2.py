"""Train a GPT-2 and watch which geometry its loss landscape has.

    python recipes/gpt2.py                              # tiny: two CPU cores, minutes, no network
    python recipes/gpt2.py --preset small               # one GPU, minutes
    python recipes/gpt2.py --data '~/books/**/*.txt'    # your own text
    python recipes/gpt2.py --optimizer adam --rotation global           # in another geometry
    python recipes/gpt2.py compare                      # five optimizers, each at its best rate
    python recipes/gpt2.py --resume last                # go on where the last run was interrupted
    python recipes/gpt2.py --preset 124m --devices 8 --strategy ddp    # OpenWebText
    python recipes/gpt2.py --preset 124m --devices 8 --strategy fsdp2  # weights and states shared

Every field of `Config` is a flag (--help), also with dashes. Flags win over `--config FILE.yaml`,
and that over the preset; --print_config shows the outcome.
Needs: pip install 'lightning-linf[recipes]'
"""

import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.functional import cross_entropy
from transformers import GPT2Config, GPT2LMHeadModel

import compare
from corpus import END_OF_TEXT_ID, MIN_VOCAB_SIZE
from lightning_linf import Geometry, SwapOptimizer
from lightning_linf.callbacks import GradientHeterogeneityMonitor, LinfSmoothnessMonitor
from report import LossHistory, print_report
from settings import RecipeError, check_fields, find_checkpoint, parse, refuse
from token_data import TokenData


@dataclass(frozen=True)
class Config:
    """Choices of a run; the defaults are the preset `tiny`."""

    name: str = "gpt2-tiny"
    """Folder of the run under runs_dir."""
    data: str = "stdlib"
    """Text: stdlib (Python's own sources), a file, a folder, a glob, or hf:NAME (see corpus.py)."""
    val_fraction: float = 0.1
    """Share of the documents held out for validation."""
    vocab_size: int = 4096
    """Tokens of the byte-level BPE that is trained on the text."""
    sequence_length: int = 128
    """Tokens a sequence; the loss is over all but the first."""
    n_layer: int = 2
    """Transformer blocks."""
    n_head: int = 4
    """Attention heads a block, which share n_embd."""
    n_embd: int = 64
    """Width."""
    dropout: float = 0.0
    """Chance to drop a value. Above 0, a resumed run draws other masks than one in one go."""
    batch_size: int = 16
    """Sequences an optimizer step, over all devices and accumulated micro-batches."""
    micro_batch: int = 16
    """Sequences a device takes at a time: as many as fit in its memory."""
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
    val_sequences: int = 64
    """Sequences of a validation."""
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
    probe_sequences: int = 16
    """Sequences of a micro-batch that a probe sees: its graph needs some ten times their memory."""
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
    cache_dir: str = ".cache"
    """Where tokenizers and tokens are kept for the next run."""
    resume: str | None = None
    """Checkpoint to go on from, or last for the newest one of this name."""

    def __post_init__(self) -> None:
        check_fields(self, may_be_zero={"seed", "warmup_steps", "swap_at"})
        share = self.micro_batch * self.devices * self.num_nodes
        for name, is_right, expected, remedy in (
            ("val_fraction", 0 < self.val_fraction <= 0.5, "a share in (0, 0.5]", "Try 0.1."),
            ("vocab_size", self.vocab_size >= MIN_VOCAB_SIZE,
             f"at least {MIN_VOCAB_SIZE}, the bytes and the end of text", "Try 4096."),
            ("sequence_length", self.sequence_length >= 2, "at least 2", "Try 128."),
            ("n_embd", self.n_embd % self.n_head == 0,
             f"a multiple of n_head={self.n_head}", "Change --n_embd or --n_head."),
            ("dropout", 0 <= self.dropout < 1, "a chance in [0, 1)", "Try 0."),
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
        ):  # fmt: skip
            if not is_right:
                refuse(name, expected, getattr(self, name), remedy)

    @property
    def accumulate(self) -> int:
        """Micro-batches that every device adds up for a step."""
        return self.batch_size // (self.micro_batch * self.devices * self.num_nodes)

    @property
    def is_plain_adamw(self) -> bool:
        """Whether the optimizer that `GPT2` configures stays."""
        return self.optimizer == "adamw" and self.rotation is None


MAY_CHANGE_ON_RESUME = {
    "name", "val_every", "val_sequences", "log_every", "checkpoint_every", "heterogeneity_every",
    "smoothness_every", "num_probes", "probe_sequences", "probe_batches", "accelerator",
    "strategy", "precision", "runs_dir", "cache_dir", "resume",
}  # fmt: skip


def tiny() -> Config:
    """370k parameters, on two CPU cores."""
    return Config()


def small() -> Config:
    """14M parameters, on one GPU."""
    return replace(
        tiny(), name="gpt2-small", vocab_size=8192, n_layer=6, n_head=6, n_embd=384,
        sequence_length=256, batch_size=64, micro_batch=64, max_steps=2000, lr=1e-3,
        warmup_steps=100, val_every=200, val_sequences=256, checkpoint_every=500,
        heterogeneity_every=50, smoothness_every=250, precision="bf16-mixed",
    )  # fmt: skip


def gpt2_124m() -> Config:
    """GPT-2 on OpenWebText, half a million tokens a step.

    Not without biases, as others train it: transformers' GPT-2 has no switch for them.
    """
    return replace(
        small(), name="gpt2-124m", data="hf:openwebtext", val_fraction=0.0005, vocab_size=50304,
        n_layer=12, n_head=12, n_embd=768, sequence_length=1024, batch_size=512, micro_batch=16,
        max_steps=100_000, lr=1.8e-3, warmup_steps=2000, val_every=1000, val_sequences=512,
        checkpoint_every=1000, heterogeneity_every=100, smoothness_every=2500, probe_sequences=4,
        probe_batches=8,
    )  # fmt: skip


ABOUT = "Train a GPT-2 and watch the geometry of its loss. compare: several optimizers on it."
PRESETS: dict[str, Callable[[], Config]] = {"tiny": tiny, "small": small, "124m": gpt2_124m}


class GPT2(LightningModule):
    """Predict the next token, on batches of token ids of shape (batch, sequence).

    Args:
        config: Choices of the run, or a mapping of them.
    """

    def __init__(self, config: Config | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(config, Config):  # as a checkpoint has it
            config = Config(**config)
        self.save_hyperparameters({"config": asdict(config)})
        self.config = config
        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.sequence_length,
                n_layer=config.n_layer,
                n_head=config.n_head,
                n_embd=config.n_embd,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                resid_pdrop=config.dropout,
                bos_token_id=END_OF_TEXT_ID,
                eos_token_id=END_OF_TEXT_ID,
                use_cache=False,
            )
        )

    def configure_model(self) -> None:
        """Under fsdp2, give every rank its share of each block, and of the rest together."""
        if self.device_mesh is None or isinstance(self.model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for block in self.model.transformer.h:
            fully_shard(block, mesh=mesh)  # gathered while it computes
        fully_shard(self.model, mesh=mesh)

    def loss(self, tokens: Tensor) -> Tensor:
        """Average the cross-entropy of every token but the first, in nats."""
        logits = self.model(tokens).logits  # (batch, sequence, vocab)
        return cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    def training_step(self, tokens: Tensor) -> Tensor:
        """Log and return the loss of a micro-batch."""
        loss = self.loss(tokens)
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def probe_loss(self, tokens: Tensor) -> Tensor:
        """Return the loss whose landscape is measured: that of the first few sequences."""
        return self.loss(tokens[: self.config.probe_sequences])

    def probe_weight(self, tokens: Tensor) -> int:
        """Count those sequences."""
        return min(len(tokens), self.config.probe_sequences)

    def validation_step(self, tokens: Tensor) -> None:
        """Add a batch to the mean over all ranks."""
        loss = self.loss(tokens)
        # Lightning's mean over ranks of these counts is a whole number, so it must come out as one.
        weight = len(tokens) * self.trainer.world_size
        self.log("val_loss", loss, batch_size=weight, prog_bar=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the perplexity of the mean: a mean of perplexities would depend on the batches."""
        mean = self.trainer.callback_metrics["val_loss"]
        self.log("val_perplexity", mean.exp(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW with warm-up and cosine. Biases and gains, which are 1-D, do not decay."""
        matrices = [p for p in self.parameters() if p.ndim >= 2]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": self.config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=self.config.lr,
            betas=self.config.betas,
        )
        warmup, total = self.config.warmup_steps, self.config.max_steps

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


def make_strategy(config: Config) -> str | Strategy:
    """Translate fsdp2; Lightning knows the other names."""
    if config.strategy != "fsdp2":
        return config.strategy
    return ModelParallelStrategy(
        data_parallel_size=config.devices * config.num_nodes,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,  # one file, which any number of devices can load
    )


def prepare(
    config: Config, callbacks: Sequence[Callback], **options: Any
) -> tuple[Trainer, GPT2, TokenData]:
    """Make all that a run needs; ``options`` are further ones of the Trainer."""
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # reads a memory map
    warnings.filterwarnings("ignore", ".*dataloader is not resumable.*")  # TokenData is
    warnings.filterwarnings("ignore", ".*dirpath has changed.*")  # a resumed run has its own folder
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # inside Lightning
    seed_everything(config.seed, workers=True, verbose=False)
    module = GPT2(config)
    data = TokenData(
        config.data,
        cache_dir=config.cache_dir,
        vocab_size=config.vocab_size,
        val_fraction=config.val_fraction,
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        micro_batch=config.micro_batch,
        max_steps=config.max_steps,
        val_sequences=config.val_sequences,
        seed=config.seed,
    )
    if not config.is_plain_adamw:
        geometry = Geometry(
            config.optimizer,
            config.partition,
            config.rotation,
            config.rotation_strength,
            lr=config.swap_lr,
        )
        callbacks = [SwapOptimizer(config.swap_at, geometry), *callbacks]
    trainer = Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=make_strategy(config),
        precision=config.precision,
        callbacks=[*callbacks],
        max_steps=config.max_steps,
        max_epochs=1,  # TokenData's epoch is the whole run
        accumulate_grad_batches=config.accumulate,
        gradient_clip_val=config.gradient_clip_val or None,
        val_check_interval=min(config.val_every, config.max_steps) * config.accumulate,
        check_val_every_n_epoch=None,  # counts the line above over the run
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # TokenData shares the sequences out
        enable_model_summary=False,
        **options,
    )
    return trainer, module, data


def main(config: Config) -> Trainer:
    """Train, and say what was measured."""
    # Lightning would give states that another strategy saved to the wrong parameters under fsdp2.
    is_fixed = {"strategy"} if config.strategy == "fsdp2" else set()
    checkpoint = find_checkpoint(config, MAY_CHANGE_ON_RESUME - is_fixed)
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
        print(f"GPT-2 with {sum(p.numel() for p in module.parameters()):,} parameters, ", end="")
        print(f"{config.batch_size * config.sequence_length:,} tokens a step")
    trainer.fit(module, data, ckpt_path=checkpoint)
    path = Path(str(trainer.log_dir), "checkpoints", "last.ckpt")
    trainer.save_checkpoint(path, weights_only=False)
    if trainer.is_global_zero:
        print_report(smoothness.history, heterogeneity.history, losses, config, path)
    return trainer


def run(args: Sequence[str]) -> None:
    """Do what a command line asks for."""
    if args[:1] == ["compare"]:
        presets = compare.shorter(PRESETS)
        compare.main(parse(presets, args[1:], compare.ABOUT, "%(prog)s compare"), prepare)
    else:
        main(parse(PRESETS, args, ABOUT, "%(prog)s [compare]"))


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except RecipeError as error:
        sys.exit(f"error: {error}")
