"""The settings that every training recipe has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_linf.partition_names import PartitionName
from lightning_linf.reparam.rotation import RotationScope
from lightning_linf.swap import OptimizerName
from settings import check_fields, refuse_unless


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a run. A recipe adds those of its data and its network."""

    name: str = "run"
    """Folder of the run under runs_dir."""
    data: str = ""
    """Where the data comes from."""
    batch_size: int = 16
    """Samples of an optimizer step, over all devices and accumulated micro-batches."""
    micro_batch: int = 16
    """Samples that a device takes at a time: more are faster, until its memory is full."""
    max_steps: int = 500
    """Optimizer steps of the run."""
    optimizer: OptimizerName = "adamw"
    """adasgd keeps one mean of g^2 for all parameters, blockwise_adam one for each block; the
    momentum of sgd, signum and muon is betas[0]. muon steps hidden matrices, and adamw the rest."""
    partition: PartitionName | None = None
    """Blocks of blockwise_adam; if none is given, every tensor is one. Larger blocks need less
    memory, and know less of the gradient."""
    rotation: RotationScope | None = None
    """Train in randomly rotated coordinates: global rotates all matrices together, and all vectors
    together; tensor each by itself; row and column the rows and columns of matrices."""
    rotation_strength: float = 1.0
    """From 0, the coordinates of the parameters, to 1, fully rotated ones."""
    swap_at: int = 0
    """Step at which optimizer, partition and rotation replace plain AdamW; 0 is the start."""
    swap_lr: float | None = None
    """Peak learning rate from swap_at on; if none is given, lr."""
    lr: float = 3e-3
    """Peak learning rate: a larger one learns faster until it diverges. Smaller models bear more,
    and sgd needs 100 to 300 times as much as Adam."""
    warmup_steps: int = 20
    """Steps over which the learning rate rises to its peak, from which a cosine leads down to a
    tenth at max_steps. A longer warm-up bears a larger peak."""
    betas: tuple[float, float] = (0.9, 0.95)
    """How much of its means of g and of g^2 Adam keeps in a step. 0.95 forgets a spike of g^2
    sooner than the usual 0.999, and follows the noise more."""
    weight_decay: float = 0.1
    """Decay of matrices: more keeps weights smaller. adam and sgd add it to the gradient (L2), the
    others take it off the weights (decoupled)."""
    gradient_clip_val: float = 1.0
    """Gradients with a larger norm are scaled down to it; 0 does not clip."""
    val_every: int = 100
    """Steps from one validation to the next, or max_steps if that is less."""
    log_every: int = 10
    """Steps from one point of the training loss to the next in TensorBoard."""
    checkpoint_every: int = 100
    """Steps from one checkpoint to the next: as many as an interruption may cost."""
    heterogeneity_every: int = 10
    """Steps from one measurement of the gradient's heterogeneity to the next; it is nearly free."""
    smoothness_every: int = 100
    """Steps from one measurement of the smoothness to the next, of about 100 micro-batches each."""
    num_probes: int = 16
    """Hessian-vector products for a (1,1)-norm: 4 times as many cost 4 times as much and halve its
    error."""
    probe_batches: int = 1
    """Micro-batches whose mean loss a probe measures: more cost more, and depend less on chance."""
    seed: int = 0
    """Fixes the initial weights and the order of the data."""
    accelerator: str = "auto"
    """cpu, gpu, or auto for what there is."""
    devices: int = 1
    """Devices on each machine."""
    num_nodes: int = 1
    """Machines."""
    strategy: str = "auto"
    """Lightning's name for a way to share out the work, such as ddp. fsdp2 also shares out weights
    and states, which saves memory and costs communication."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Mixed precisions compute faster and less exactly. They keep the weights in 32 bits, in which
    the smoothness is measured."""
    runs_dir: str = "runs"
    """Where curves and checkpoints go: to runs_dir/name/version_N."""
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
        """Micro-batches whose gradients every device adds up for one step."""
        return self.batch_size // (self.micro_batch * self.devices * self.num_nodes)

    @property
    def is_plain_adamw(self) -> bool:
        """Whether the run keeps the optimizer that the module configures."""
        return self.optimizer == "adamw" and self.rotation is None

    def data_id(self) -> str:
        """Name the content of the data: a comparison repeats its runs when that changes."""
        raise NotImplementedError


ConfigT = TypeVar("ConfigT", bound=TrainingConfig)
# A recipe's function of a config, of callbacks, and of further arguments of the Trainer.
Prepare = Callable[..., tuple[Trainer, LightningModule, LightningDataModule]]
