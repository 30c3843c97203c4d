"""Train a small vision transformer on images and watch which geometry its loss landscape has.

    python recipes/vit.py                               # on 8 x 8 digits: minutes on a CPU
    python recipes/vit.py --data cifar10:DIR --patch 4 --width 192 --n_layer 6      # one GPU
    python recipes/vit.py --optimizer adam --rotation global            # in another geometry
    python recipes/vit.py compare                       # optimizers, each at its best rate
    python recipes/vit.py --resume last                 # go on where the last run was interrupted

Every field of `Config` is a flag (--help), also with dashes. Flags win over `--config FILE.yaml`,
and that over the preset, a file in recipes/presets; --print_config shows the outcome.
Needs: pip install 'lightning-linf[recipes]'
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
from settings import RecipeError, refuse, refuse_unless
from training.ending import end_rank
from training.image_classifier import MAY_CHANGE_ON_RESUME, ImageClassifier, ImageConfig
from training.train import make_trainer, train


@dataclass(frozen=True)
class Config(ImageConfig):
    """Settings of a run; the defaults are those of the preset `digits`."""

    name: str = "vit-digits"
    """Folder of the run under runs_dir."""
    patch: int = 2
    """Pixels of a patch's side. Smaller patches show more, and attention costs the square of their
    number."""
    n_layer: int = 3
    """Transformer blocks: more learn more, and cost time and memory in proportion."""
    n_head: int = 4
    """Attention heads of a block. They share width, so that more of them are narrower ones."""
    width: int = 48
    """Numbers that stand for a patch; parameters and time of the blocks grow with the square."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless(self, (
            ("width", self.width % self.n_head == 0,
             f"a multiple of n_head={self.n_head}", "Change --width or --n_head."),
        ))  # fmt: skip


ABOUT = "Train a small ViT and watch the geometry of its loss. compare: several optimizers on it."
PRESETS = find_presets("vit", Config, default="digits")


class Block(nn.Module):
    """Attention and a hidden layer, each beside a shortcut and after a LayerNorm."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (batch, patches, width) in and out."""
        normed = self.norm1(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        hidden: Tensor = self.down(nn.functional.gelu(self.up(self.norm2(x))))
        return x + hidden


class VisionTransformer(nn.Module):
    """Cut images into patches, and classify the mean of what the blocks make of them.

    Source:
        Dosovitskiy et al., arXiv:2010.11929, with the mean over patches in place of a class token.
    """

    def __init__(self, num_channels: int, side: int, config: Config) -> None:
        super().__init__()
        width, patch = config.width, config.patch
        self.embed = nn.Conv2d(num_channels, width, patch, stride=patch)
        self.positions = nn.Parameter(0.02 * torch.randn((side // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, config.n_head) for _ in range(config.n_layer)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, NUM_CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Shapes: (batch, channels, side, side) -> (batch, classes)."""
        patches = self.embed(pixels).flatten(2).transpose(1, 2)  # (batch, patches, width)
        logits: Tensor = self.head(self.norm(self.blocks(patches + self.positions)).mean(dim=1))
        return logits


class ViT(ImageClassifier[Config]):
    """Classify images.

    Args:
        config: Settings of the run, or a mapping of them, as checkpoints have it.
    """

    config_class = Config

    @override
    def make_network(self, num_channels: int, side: int) -> nn.Module:
        if side % self.config.patch:
            refuse("patch", f"a divisor of the {side} pixels of a side", self.config.patch,
                   "Change --patch.")  # fmt: skip
        return VisionTransformer(num_channels, side, self.config)


def prepare(
    config: Config, callbacks: Sequence[Callback], **options: Any
) -> tuple[Trainer, ViT, ImageData]:
    """Make trainer, network and data of a run; ``options`` are further ones of the Trainer."""
    seed_everything(config.seed, workers=True, verbose=False)
    module = ViT(config)
    return make_trainer(config, callbacks, **options), module, ImageData.of(config)


def main(config: Config) -> Trainer:
    """Train, and print what was measured."""
    title = f"ViT of {config.n_layer} blocks of width {config.width}"
    return train(config, prepare, MAY_CHANGE_ON_RESUME, title)


def run(args: Sequence[str]) -> None:
    """Train or compare, as the command line says."""
    compare.run(args, PRESETS, prepare, main, ABOUT)


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except RecipeError as error:
        sys.exit(f"error: {error}")
    end_rank()
