r"""Train a GPT-2 and watch which geometry its loss landscape has.

    python recipes/gpt2.py                              # tiny: two CPU cores, minutes, no network
    python recipes/gpt2.py --preset small               # one GPU, minutes
    python recipes/gpt2.py --data '~/books/**/*.txt'    # your own text
    python recipes/gpt2.py --optimizer adam --rotation global           # in another geometry
    python recipes/gpt2.py compare                      # five optimizers, each at its best rate
    python recipes/gpt2.py compare --variants all --seeds 3 --jobs 2    # eleven, and their geometry
    python recipes/gpt2.py --resume last                # go on where the last run was interrupted
    python recipes/gpt2.py --preset 124m --devices 8 --strategy ddp    # OpenWebText
    python recipes/gpt2.py --preset 124m --devices 8 --strategy fsdp2  # weights and states shared
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:PORT \
        recipes/gpt2.py --preset 124m --num_nodes 2 --devices 8 --strategy fsdp2    # on each of two

Every field of `Config` is a flag (--help), also with dashes. Flags win over `--config FILE.yaml`,
and that over the preset, a file in recipes/presets; --print_config shows the outcome.
Needs, in the clone: python -m pip install -e '.[recipes]'
"""

import requirements  # noqa: F401  # first of all, to say what is missing

# isort: split
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.functional import cross_entropy, pad
from transformers import GPT2Config, GPT2LMHeadModel

from command_line import find_presets
from comparison import compare
from data.corpus import END_OF_TEXT_ID, MIN_VOCAB_SIZE, cache_folder, held_out_fraction
from data.token_data import TokenData
from settings import RecipeError, refuse_unless
from training.config import TrainingConfig
from training.ending import end_rank
from training.resume import MAY_CHANGE_ON_RESUME
from training.train import make_optimizers, make_trainer, train

_IGNORED = -1  # target of a position that does not count


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of a run; the defaults are those of the preset `tiny`."""

    name: str = "gpt2-tiny"
    """Folder of the run under runs_dir."""
    data: str = "stdlib"
    """Text: stdlib (Python's own sources), a file, a folder, a glob, or hf:NAME of the Hub."""
    val_fraction: float = 0.1
    """Share of the documents held out for validation. More make the validation loss surer and leave
    less to train on. If it holds out fewer than 64 sequences it rises, up to 0.1, and says so."""
    vocab_size: int = 4096
    """Tokens of the byte-level BPE that is trained on the text. With more of them a sequence holds
    more text, and the embedding is larger. Losses per token compare only at one size."""
    sequence_length: int = 128
    """Tokens of a sequence, which is one sample. A longer one gives more context, and attention
    costs its square."""
    n_layer: int = 2
    """Transformer blocks: more learn more, and cost time and memory in proportion."""
    n_head: int = 4
    """Attention heads of a block. They share n_embd, so that more of them are narrower ones."""
    n_embd: int = 64
    """Width of the network; parameters and time of the blocks grow with its square."""
    dropout: float = 0.0
    """Chance to drop a value in training, against overfitting. Above 0, a resumed run draws other
    masks than an uninterrupted one."""
    val_sequences: int = 64
    """Sequences of a validation: more take longer, and give a surer loss."""
    probe_sequences: int = 16
    """Sequences of a micro-batch that a probe sees. Fewer need less memory, some ten times that of
    training on them, and leave more to chance."""
    cache_dir: str = ".cache"
    """Folder in which tokenizers and tokens are kept for the next run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unless(self, (
            ("val_fraction", 0 < self.val_fraction <= 0.5, "a share in (0, 0.5]", "Try 0.1."),
            ("vocab_size", self.vocab_size >= MIN_VOCAB_SIZE,
             f"at least {MIN_VOCAB_SIZE}, the bytes and the end of text", "Try 4096."),
            ("sequence_length", self.sequence_length >= 2, "at least 2", "Try 128."),
            ("n_embd", self.n_embd % self.n_head == 0,
             f"a multiple of n_head={self.n_head}", "Change --n_embd or --n_head."),
            ("dropout", 0 <= self.dropout < 1, "a chance in [0, 1)", "Try 0."),
        ))  # fmt: skip

    def data_id(self) -> str:
        """Name the text and what its tokens depend on."""
        held_out = held_out_fraction(self.data, self.val_fraction, self.sequence_length)
        return cache_folder(self.data, self.cache_dir, self.vocab_size, held_out).name


ABOUT = "Train a GPT-2 and watch the geometry of its loss. compare: several optimizers on it."
PRESETS = find_presets("gpt2", Config, default="tiny")


class GPT2(LightningModule):
    """Predict the next token, on batches of token ids of shape (batch, sequence).

    Args:
        config: Settings of the run, or a mapping of them, as checkpoints have it.
    """

    def __init__(self, config: Config | Mapping[str, Any]) -> None:
        super().__init__()
        if not isinstance(config, Config):
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
        """Shard the network under fsdp2: each block for itself, and then all the rest."""
        if self.device_mesh is None or isinstance(self.model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for block in self.model.transformer.h:
            fully_shard(block, mesh=mesh)  # whole only while it computes
        fully_shard(self.model, mesh=mesh)

    def loss(self, tokens: Tensor) -> Tensor:
        """Give the mean cross-entropy of every token but the first, in nats."""
        logits = self.model(tokens).logits  # (batch, sequence, vocab)
        # The last logits have no target. To ignore them copies nothing; to cut them off would.
        targets = pad(tokens[:, 1:], (0, 1), value=_IGNORED)
        return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED)

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
        """AdamW, which `SwapOptimizer` exchanges where another geometry is chosen."""
        return make_optimizers(self, self.config)


def prepare(
    config: Config, callbacks: Sequence[Callback], **options: Any
) -> tuple[Trainer, GPT2, TokenData]:
    """Make trainer, network and data of a run; ``options`` are further ones of the Trainer."""
    seed_everything(config.seed, workers=True, verbose=False)
    module = GPT2(config)
    return make_trainer(config, callbacks, **options), module, TokenData.of(config)


def main(config: Config) -> Trainer:
    """Train, and print what was measured."""
    may_change = MAY_CHANGE_ON_RESUME | {"val_sequences", "probe_sequences", "cache_dir"}
    # Under fsdp2 Lightning would load states that another strategy saved into wrong parameters.
    may_change -= {"strategy"} if config.strategy == "fsdp2" else set()
    title = f"GPT-2 on sequences of {config.sequence_length} tokens,"
    return train(config, prepare, may_change, title)


def run(args: Sequence[str]) -> None:
    """Train or compare, as the command line says."""
    compare.run(args, PRESETS, prepare, main, ABOUT)


if __name__ == "__main__":
    try:
        run(sys.argv[1:])
    except RecipeError as error:
        sys.exit(f"error: {error}")
    end_rank()
