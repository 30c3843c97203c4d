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
Needs, in the clone: python -m pip install -e '.[recipes]'
"""

import requirements  # noqa: F401  # first of all, to say what is missing

# isort: split
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from torch import Tensor, nn
from typing_extensions import override

from command_line import find_presets
from comparison import compare
from data.image_data import ImageData
from data.images import NUM_CLASSES
from settings import RecipeError
from training.ending import end_rank
from training.image_classifier import MAY_CHANGE_ON_RESUME, ImageClassifier, ImageConfig
from training.train import make_trainer, train


@dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of a run; the defaults are those of the preset `digits`."""

    name: str = "resnet-digits"
    """Folder of the run under runs_dir."""
    width: int = 8
    """Channels of the first stage, which double three times: 64 in ResNet-18. Parameters and time
    grow with the square."""
    micro_batch: int = 32
    """Images that a device takes at a time; BatchNorm takes its statistics from them alone."""
    weight_decay: float = 5e-4
    """Decay of matrices: more keeps weights smaller. adam and sgd add it to the gradient (L2), the
    others take it off the weights (decoupled)."""


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


class ResNet(ImageClassifier[Config]):
    """Classify images.

    Args:
        config: Settings of the run, or a mapping of them, as checkpoints have it.
    """

    config_class = Config

    @override
    def make_network(self, num_channels: int, side: int) -> nn.Module:
        return resnet18(num_channels, self.config.width)


def prepare(
    config: Config, callbacks: Sequence[Callback], **options: Any
) -> tuple[Trainer, ResNet, ImageData]:
    """Make trainer, network and data of a run; ``options`` are further ones of the Trainer."""
    seed_everything(config.seed, workers=True, verbose=False)
    module = ResNet(config)
    return make_trainer(config, callbacks, **options), module, ImageData.of(config)


def main(config: Config) -> Trainer:
    """Train, and print what was measured."""
    return train(config, prepare, MAY_CHANGE_ON_RESUME, f"ResNet-18 of width {config.width}")


def run(args: Sequence[str]) -> None:
    """Train or compare, as the command line says."""
    compare.run(args, PRESETS, prepare, main, ABOUT, lacks="head")  # it has no attention


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except RecipeError as error:
        sys.exit(f"error: {error}")
    end_rank()
