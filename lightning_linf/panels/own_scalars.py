"""Which of the curves that a training logs by itself stand beside its geometry."""

import re
from collections.abc import Iterable

# By kind, what the tags look like: "train_loss", "val/loss"; "lr-AdamW/pg1", "learning_rate".
_KINDS = {
    "loss": re.compile(r"loss", re.IGNORECASE),
    "learning_rate": re.compile(
        r"(^|[/_.-])(lr|learning[_ -]?rate)(?!.*(momentum|weight_decay))", re.IGNORECASE
    ),
}
_MOST = 12  # of each kind: a chart with more cannot be read


def own_scalars(tags: Iterable[str]) -> dict[str, list[str]]:
    """Choose, from tags that are not of this package, those of losses and of learning rates.

    Example:
        >>> own_scalars(["val_loss", "lr-AdamW", "lr-AdamW-momentum", "epoch"])
        {'loss': ['val_loss'], 'learning_rate': ['lr-AdamW']}
    """
    tags = sorted(tags)
    found = {kind: [tag for tag in tags if form.search(tag)] for kind, form in _KINDS.items()}
    return {kind: names[:_MOST] for kind, names in found.items()}
