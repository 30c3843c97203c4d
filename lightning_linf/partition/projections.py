"""Tell from their sizes which linear map of an attention module is query, key, value or output."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import nn

from lightning_linf.partition.orientation import is_conv1d

_NUM_HEADS = ("num_heads", "n_head", "n_heads", "num_attention_heads", "heads", "nhead")
_HEAD_SIZE = ("head_dim", "attention_head_size", "head_size")


class Projection(NamedTuple):
    """A linear map in an attention module or beside it; ``name`` is that in the whole model."""

    name: str
    module: nn.Module
    num_outputs: int
    num_inputs: int


class Part(NamedTuple):
    """What a projection computes.

    A linear map that computes keys and values of 4 heads, for example, is ``Part(2, 4)``.

    Args:
        num_parts: How many of query, key and value; 0 for the output projection, whose inputs are
            the heads.
        num_heads: Of how many heads.
    """

    num_parts: int
    num_heads: int


class Reading(NamedTuple):
    """One way to understand the projections of an attention module."""

    head_size: int
    parts: tuple[Part, ...]


def linear_maps(modules: Iterable[tuple[str, nn.Module]], prefix: str) -> list[Projection]:
    """Pick the linear maps among named modules, and put ``prefix`` before their names."""
    return [
        Projection(f"{prefix}.{name}" if prefix else name, module, *sizes)
        for name, module in modules
        if (sizes := _linear_sizes(module)) is not None
    ]


def output_beside(
    projections: Sequence[Projection], parent: nn.Module, parent_name: str
) -> list[Projection]:
    """Find the output projection of an attention module whose parent holds it, as in BERT.

    It is the parent's only other linear map, and it leads from the width of all heads together to
    the width of the attention's input.

    Returns:
        A list of this one projection, empty if there is none.
    """
    own = {id(projection.module) for projection in projections}
    linears = linear_maps(parent.named_modules(), parent_name)
    beside = [projection for projection in linears if id(projection.module) not in own]
    width = max(projection.num_outputs for projection in projections)
    inputs = {projection.num_inputs for projection in projections}
    fits = len(beside) == 1 and beside[0].num_inputs == width and beside[0].num_outputs in inputs
    return beside if fits else []


def read(heads: int, size: int | None, projections: Sequence[Projection]) -> list[Reading]:
    """List all ways to understand the projections of an attention module.

    The output projection, if it is among them, has to be the last one.

    Args:
        heads: The number of heads.
        size: The size of a head, or None if the module does not state it.
        projections: All of them, in the order of the module.
    """
    readings = _readings(heads, projections)
    return [reading for reading in readings if size is None or reading.head_size == size]


def num_heads(module: nn.Module) -> int | None:
    """Give the number of heads that a module states, or None: it is no attention."""
    heads = _own_int(module, _NUM_HEADS)
    if heads is None and head_size(module) is not None:
        heads = getattr(vars(module).get("config"), "num_attention_heads", None)
    return heads


def head_size(module: nn.Module) -> int | None:
    """Give the size of a head that a module states, or None."""
    return _own_int(module, _HEAD_SIZE)


def _readings(heads: int, projections: Sequence[Projection]) -> list[Reading]:
    *inner, last = projections  # if the last one is the output projection
    outputs = [projection.num_outputs for projection in inner]
    width = last.num_inputs  # of all heads together
    readings = []
    fused = outputs == [3 * width] or sorted(outputs) == [width, 2 * width]
    if fused and width % heads == 0:
        parts = (*(Part(size // width, heads) for size in outputs), Part(0, heads))
        readings.append(Reading(width // heads, parts))
    if len(inner) == 3 and width == max(outputs):
        readings += [
            Reading(size, (*parts, Part(0, heads))) for size, parts in _separate(heads, outputs)
        ]
    if len(inner) == 2:
        readings += _separate(heads, [*outputs, last.num_outputs])
    return readings


def _separate(heads: int, outputs: Sequence[int]) -> list[Reading]:
    """Understand three sizes as those of query, key and value, in any order.

    Key and value may have fewer heads than the query, as in grouped-query attention.
    """
    least, middle, width = sorted(outputs)
    head_size = width // heads
    if width % heads or least != middle or least % head_size or heads % (least // head_size):
        return []
    return [Reading(head_size, tuple(Part(1, size // head_size) for size in outputs))]


def _own_int(module: nn.Module, names: Sequence[str]) -> int | None:
    values = (vars(module).get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and v > 0), None)


def _linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Give the numbers of outputs and inputs of a linear map; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if is_conv1d(module):
        weight = module._parameters["weight"]
        assert weight is not None
        return weight.shape[1], weight.shape[0]
    return None
