"""Add up over ranks what a node has for a parameter as soon as it is there."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from lightning_linf.distributed.stretches import Gather
from lightning_linf.probe.autograd_graph import nodes_of
from lightning_linf.probe.gathered_at_use import GatheredAtUse

# Nodes that only look at what they are given in another way, by the beginnings of their names.
_VIEWS = (
    *("TBackward", "ViewBackward", "UnsafeViewBackward", "TransposeBackward", "PermuteBackward"),
    *("SqueezeBackward", "UnsqueezeBackward", "SliceBackward", "SelectBackward", "AliasBackward"),
    *("ExpandBackward", "ReshapeAliasBackward", "AsStridedBackward", "ToCopyBackward"),
)


def add_up_early(gradients: Sequence[Tensor], wholes: GatheredAtUse) -> None:
    """Let products with the graph of a gradient hold no whole product of a parameter for long.

    A parameter is used in the forward and in the backward pass, and autograd waits for what both
    uses give before it goes on: the whole products of all parameters would pile up meanwhile. So
    each is taken where it is made, and added to ``wholes.sums``, which a pass over the graph must
    set.

    Args:
        gradients: With a graph of their own.
        wholes: What has gathered the parameters.
    """
    for node, _ in nodes_of(gradients):
        ways = {
            place: way
            for place, (following, _) in enumerate(node.next_functions)
            if (way := _way_to_gather(following)) and _way_to_gather(node) is None
        }
        if ways:
            node.register_hook(partial(_take, ways, wholes))


def _way_to_gather(node: Any) -> list[Any] | None:
    """Give the views between a node and a parameter that was gathered, and the node of that."""
    way = []
    while node is not None:
        way.append(node)
        if getattr(node, "_forward_cls", None) is Gather:
            return way
        if not node.name().startswith(_VIEWS) or len(node.next_functions) != 1:
            return None
        node = node.next_functions[0][0]
    return None


def _take(
    ways: Mapping[int, Sequence[Any]],
    wholes: GatheredAtUse,
    results: tuple[Tensor | None, ...],
    _: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...] | None:
    """Take parameters' parts out of what a node gives back."""
    if wholes.sums is None:
        return None
    left = list(results)
    for place, (*views, gather) in ways.items():
        part, left[place] = left[place], None
        for view in views:
            part = None if part is None else view(part)
        if part is not None:
            wholes.take(part, gather.number)
    return tuple(left)
