"""What recipes of image classifiers share: settings, and the module but for its network."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, TypeVar

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data.image_data import Batch
from data.images import content_id, load
from settings import refuse_unless
from training import resume
from training.config import TrainingConfig
from training.train import make_optimizers

MAY_CHANGE_ON_RESUME = resume.MAY_CHANGE_ON_RESUME | {"val_images", "probe_images"}


@dataclass(frozen=True)
class ImageConfig(TrainingConfig):
    """Settings of a run on images. A recipe adds those of its network."""

    data: str = "digits"
    """Images: digits (of scikit-learn), or cifar10:DIR, fashion-mnist:DIR (see data/images.py)."""
    batch_size: int = 32
    """Images of an optimizer step, over all devices and accumulated micro-batches."""
    micro_batch: int = 32
    """Images that a device takes at a time: more are faster, until its memory is full."""
    max_steps: int = 300
    """Optimizer steps of the run."""
    val_images: int = 1000
    """Images of a validation, at most: more take longer, and give a surer loss."""
    probe_images: int = 64
    """Images of a micro-batch that a probe sees. Fewer need less memory, some ten times that of
    training on them, and leave more to chance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless(self, (
            ("strategy", self.strategy != "fsdp2",
             "one that keeps the network whole", "Choose --strategy ddp."),
        ))  # fmt: skip

    def data_id(self) -> str:
        """Name the images by their content."""
        return content_id(self.data)


ConfigT = TypeVar("ConfigT", bound=ImageConfig)


class ImageClassifier(LightningModule, Generic[ConfigT]):
    """Classify images by the network that `make_network` makes.

    Args:
        config: Settings of the run, or a mapping of them, as checkpoints have it.
    """

    config_class: ClassVar[type[ImageConfig]]

    def __init__(self, config: ConfigT | Mapping[str, Any]) -> None:
        super().__init__()
        if isinstance(config, Mapping):
            config = self.config_class(**config)  # type: ignore[assignment]  # it is ConfigT
        self.save_hyperparameters({"config": asdict(config)})  # type: ignore[arg-type]  # likewise
        self.config: ConfigT = config  # type: ignore[assignment]
        (pixels, _), _ = load(self.config.data)
        self.model = self.make_network(pixels.shape[1], pixels.shape[2])

    def make_network(self, num_channels: int, side: int) -> nn.Module:
        """Make a network from images (batch, num_channels, side, side) to logits."""
        raise NotImplementedError

    def training_step(self, batch: Batch) -> Tensor:
        """Log and return the loss of a micro-batch."""
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def probe_loss(self, batch: Batch) -> Tensor:
        """Return the loss whose landscape is measured: that of the first few images."""
        pixels, labels = batch
        return self._loss((pixels[: self.config.probe_images], labels[: self.config.probe_images]))

    def probe_weight(self, batch: Batch) -> int:
        """Count those images."""
        return min(len(batch[1]), self.config.probe_images)

    def validation_step(self, batch: Batch) -> None:
        """Add a batch to the means over all ranks."""
        pixels, labels = batch
        logits = self.model(pixels)  # (batch, classes)
        # Lightning's mean over ranks of these counts is a whole number, so it must come out as one.
        weight = len(labels) * self.trainer.world_size
        accuracy = (logits.argmax(dim=1) == labels).float().mean()
        values = {"val_loss": cross_entropy(logits, labels), "val_accuracy": accuracy}
        self.log_dict(values, batch_size=weight, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW, which `SwapOptimizer` exchanges where another geometry is chosen."""
        return make_optimizers(self, self.config)

    def _loss(self, batch: Batch) -> Tensor:
        pixels, labels = batch
        return cross_entropy(self.model(pixels), labels)
