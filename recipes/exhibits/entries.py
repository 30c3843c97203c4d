"""The trainings of the gallery: the recipes' networks, small enough for a minute or two each."""

from dataclasses import dataclass, replace
from typing import Any

import gpt2
import resnet
import vit
from training.config import Prepare, TrainingConfig

# Of all but the diverging one. Batches come in four parts, by which noise is told from signal.
_SHARED: dict[str, Any] = {
    "accelerator": "cpu",
    "max_steps": 200,
    "val_every": 20,
    "log_every": 5,
    "heterogeneity_every": 20,
    "smoothness_every": 20,
    "num_probes": 8,
}


@dataclass(frozen=True)
class Training:
    """A run of a recipe.

    Args:
        config: Its settings; ``name`` is the folder of its records.
        prepare: The recipe's function of that name.
    """

    config: TrainingConfig
    prepare: Prepare


_GPT2 = gpt2.Config(
    name="gpt2",
    vocab_size=512,
    sequence_length=32,
    n_embd=32,
    batch_size=32,
    micro_batch=8,
    **_SHARED,
)
_RESNET = resnet.Config(name="resnet", width=4, batch_size=128, micro_batch=32, **_SHARED)
_VIT = vit.Config(name="vit", n_layer=2, width=32, batch_size=128, micro_batch=32, **_SHARED)
# Its learning rate rises until the end, to far more than SGD bears, and nothing is clipped.
_DIVERGING = replace(
    _VIT,
    name="diverging",
    optimizer="sgd",
    lr=1.6,
    weight_decay=0.0,
    gradient_clip_val=0.0,
    max_steps=120,
    warmup_steps=119,
    batch_size=64,
    micro_batch=16,
    val_every=6,
    log_every=3,
    heterogeneity_every=6,
    smoothness_every=6,
)
TRAININGS = (
    Training(_GPT2, gpt2.prepare),
    Training(replace(_GPT2, name="gpt2-rotated", rotation="global"), gpt2.prepare),
    Training(_RESNET, resnet.prepare),
    Training(_VIT, vit.prepare),
    Training(_DIVERGING, vit.prepare),
)
