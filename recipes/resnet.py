"""Train a ResNet-18 on images and watch which geometry its loss landscape has.

    python recipes/resnet.py                            # thin, on 8 x 8 digits: minutes on a CPU
    python recipes/resnet.py --preset cifar10 --data cifar10:DIR        # full width, one GPU
    python recipes/resnet.py --data fashion-mnist:DIR   # idx files
    python recipes/resnet.py --optimizer adam --rotation global         # in another geometry
    python recipes/resnet.py compare                    # optimizers, each at its best rate
    python recipes/resnet.py compare --batch-sizes '[16,64,256]'        # and by batch size
    python recipes/resnet.py --resume last              # go on where the last run was interrupted
    python recipes/resnet.py --preset cifar10 --data cifar10:DIR --devices 2 --strategy ddp

Every field of `Config` is a flag (--help), also with dashes. Flags win over `--config FILE.yaml`,
and that over the preset, a file in recipes/presets; --print_config shows the outcome.
Needs: pip install 'lightning-linf[recipes]'
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from command_line import find_presets
from comparison import compare
from data.image_data import Batch, ImageData
from data.images import content_id, load
from settings import RecipeError, refuse_unless
from training.config import TrainingConfig
from training.ending import end_rank
from training.resume import MAY_CHANGE_ON_RESUME
from training.train import make_optimizers, make_trainer, train

NUM_CLASSES = 10  # of each data set that data/images.py reads


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of a run; the defaults are those of the preset `digits`."""

    name: str = "resnet-digits"
    """Folder of the run under runs_dir."""
    data: str = "digits"
    """Images: digits (of scikit-learn), or cifar10:DIR, fashion-mnist:DIR (see data/images.py)."""
    width: int = 8
    """Channels of the first stage, which double three times: 64 in ResNet-18. Parameters and time
    grow with the square."""
    batch_size: int = 32
    """Images of an optimizer step, over all devices and accumulated micro-batches."""
    micro_batch: int = 32
    """Images that a device takes at a time; BatchNorm takes its statistics from them alone."""
    max_steps: int = 300
    """Optimizer steps of the run."""
    weight_decay: float = 5e-4
    """Decay of matrices: more keeps weights smaller. adam and sgd add it to the gradient (L2), the
    others take it off the weights (decoupled)."""
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


ABOUT = "Train a ResNet-18 and watch the geometry of its loss. compare: several optimizers on it."
PRESETS = find_presets("resnet", Config, default="digits")


class Block(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Shapes: (batch, channels_in, h, w) -> (batch, channels, h / stride, w / stride)."""
        residual = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(residual + self.shortcut(x))


def resnet18(num_channels: int, width: int) -> nn.Sequential:
    """Make the ResNet-18 for small images, with a 3 x 3 stem of stride 1 and no pooling after it.

    Source:
        He, Zhang, Ren & Sun, arXiv:1512.03385: four stages of two blocks.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(num_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
    ]  # fmt: skip
    channels = width
    for stage in range(4):
        for stride in (1 if stage == 0 else 2, 1):
            layers.append(Block(channels, channels := width * 2**stage, stride))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, NUM_CLASSES)]
    return nn.Sequential(*layers)


class ResNet(LightningModule):
    """Classify images.

    Args:
        config: Settings of the run, or a mapping of them, as checkpoints have it.
    """

    def __init__(self, config: Config | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(config, Config):
            config = Config(**config)
        self.save_hyperparameters({"config": asdict(config)})
        self.config = config
        (pixels, _), _ = load(config.data)
        self.model = resnet18(pixels.shape[1], config.width)

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


def prepare(
    config: Config, callbacks: Sequence[Callback], **options: Any
) -> tuple[Trainer, ResNet, ImageData]:
    """Make trainer, network and data of a run; ``options`` are further ones of the Trainer."""
    seed_everything(config.seed, workers=True, verbose=False)
    module = ResNet(config)
    return make_trainer(config, callbacks, **options), module, ImageData.of(config)


def main(config: Config) -> Trainer:
    """Train, and print what was measured."""
    may_change = MAY_CHANGE_ON_RESUME | {"val_images", "probe_images"}
    return train(config, prepare, may_change, f"ResNet-18 of width {config.width}")


def run(args: Sequence[str]) -> None:
    """Train or compare, as the command line says."""
    compare.run(args, PRESETS, prepare, main, ABOUT, lacks="head")  # it has no attention


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except RecipeError as error:
        sys.exit(f"error: {error}")
    end_rank()
