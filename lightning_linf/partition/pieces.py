"""Which parameters a partition splits, and blocks made of labels."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from lightning_linf.partition.layouts import IndexLayout, Layout
from lightning_linf.partition.orientation import Owner

# What a partition needs of one tensor: how its entries fall into blocks, and a label. Tensors with
# the same label lie in one block; None is for a tensor whose blocks are its own.
Piece = tuple[Hashable, Layout | IndexLayout]


def trainable_parameters(
    module: nn.Module, only: Collection[nn.Parameter] | None = None
) -> dict[str, nn.Parameter]:
    """Give the parameters that require grad by name, a tied one once; if given, ``only`` these."""
    chosen = None if only is None else {id(p) for p in only}
    return {
        name: p
        for name, p in module.named_parameters()
        if p.requires_grad and (chosen is None or id(p) in chosen)
    }


def trainable(
    caller: str, module: nn.Module, only: Collection[nn.Parameter] | None
) -> dict[str, nn.Parameter]:
    """Give the parameters to split by name; a ValueError if there are none, or some are lazy."""
    named = trainable_parameters(module, only)
    for name, p in named.items():
        if isinstance(p, UninitializedParameter):
            raise ValueError(
                f"Partition.{caller}: expected initialized parameters, but {name} is still lazy. "
                "Run the module once first."
            )
    if not any(p.numel() for p in named.values()):
        raise ValueError(
            f"Partition.{caller}: expected trainable parameters in {type(module).__name__}, got "
            "none with entries. Set requires_grad on those that you want to split."
        )
    return named


def owners(module: nn.Module) -> dict[int, list[Owner]]:
    """By the identity of a parameter, list the modules that hold it, in the order of modules."""
    found = defaultdict(list)
    for submodule in module.modules():
        for name, p in submodule._parameters.items():
            if p is not None:
                found[id(p)].append(Owner(submodule, name))
    return found


def number(pieces: Iterable[Piece]) -> list[Layout | IndexLayout]:
    """Number the blocks in the order in which they first appear."""
    layouts: list[Layout | IndexLayout] = []
    first_of: dict[Hashable, int] = {}
    next_block = 0
    for label, layout in pieces:
        first = next_block if label is None else first_of.setdefault(label, next_block)
        layouts.append(replace(layout, first=first))
        next_block = max(next_block, first + layout.num_blocks)
    return layouts


def whole(shape: torch.Size) -> Layout:
    """Lay out a tensor as one block."""
    return Layout((shape.numel(),), ())


def nothing() -> Layout:
    """Lay out a tensor without entries: it has no block."""
    return Layout((0,), (0,))


def matched(pattern: str, named: Mapping[str, nn.Parameter]) -> list[Piece]:
    """Label whole tensors by what a regular expression finds in their names."""
    found = {name: re.search(pattern, name) for name in named}
    missed = [name for name, match in found.items() if match is None]
    if missed:
        more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
        raise ValueError(
            f"Partition.by_regex: expected {pattern!r} in the name of every trainable parameter, "
            f"got {len(missed)} without it: {', '.join(missed[:5])}{more}. "
            "Add an alternative for them, as in 'this|that'."
        )
    labels = [match.groups() or match.group() for match in found.values() if match]
    return [(label, whole(p.shape)) for label, p in zip(labels, named.values(), strict=True)]


def labelled(
    function: Callable[[str, nn.Parameter], Hashable | Tensor], named: Mapping[str, nn.Parameter]
) -> list[Piece]:
    """Label tensors, or their entries, by what a function returns for them."""
    return [_labelled(name, p, function(name, p)) for name, p in named.items()]


def _labelled(name: str, p: nn.Parameter, label: Hashable | Tensor) -> Piece:
    if isinstance(label, Tensor):  # first, as tensors are hashable, too
        # Gathered from all ranks if it is sharded, as `zeros_like(p)` may make it.
        label = label.full_tensor() if hasattr(label, "full_tensor") else label
        if label.shape == p.shape and not (label.is_floating_point() or label.is_complex()):
            distinct, index = torch.unique(label, return_inverse=True)
            return None, IndexLayout(index.flatten().to(torch.int32), len(distinct))
        got = f"a {label.dtype} tensor of shape {tuple(label.shape)}"
    elif label is not None and _has_hash(label):
        return label, whole(p.shape)
    else:
        got = repr(label)
    raise ValueError(
        f"Partition.by_function: expected of {name} a hashable label or an integer tensor of shape "
        f"{tuple(p.shape)}, got {got}. Return one for every trainable parameter."
    )


def _has_hash(label: object) -> bool:
    try:
        hash(label)  # isinstance(label, Hashable) is True even of a tuple that holds a list
    except TypeError:
        return False
    return True
