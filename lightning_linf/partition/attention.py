"""Attention recognised by its structure, and its parameters split by head."""

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from torch import nn

from lightning_linf.partition.layouts import Layout, is_conv1d

FusedQKV = Literal["qkv_head", "head_qkv"]

_NUM_HEADS = ("num_heads", "n_head", "n_heads", "num_attention_heads", "heads", "nhead")
_HEAD_SIZE = ("head_dim", "attention_head_size", "head_size")


class _Projection(NamedTuple):
    """A linear map inside an attention module."""

    name: str
    module: nn.Module
    num_outputs: int
    num_inputs: int


class _Part(NamedTuple):
    """What a projection computes: ``num_parts`` of query, key and value for ``num_heads`` heads.

    No parts: it is the output projection, and reads the heads.
    """

    num_parts: int
    num_heads: int


class _Reading(NamedTuple):
    """One way to understand the projections of an attention module."""

    head_size: int
    parts: tuple[_Part, ...]


def by_head(
    module: nn.Module, chosen: Collection[int], fused_qkv: FusedQKV | None
) -> dict[int, Layout]:
    """Lay out the attention parameters of a module by head.

    Args:
        module: Where to look.
        chosen: Identities of the parameters that count; attention with none of them is passed over.
        fused_qkv: Order of the outputs of an ``nn.Linear`` that computes several of q, k and v.

    Returns:
        By identity of the parameter, its layout. The others are to be left whole.

    Raises:
        ValueError: If no attention is found, or one is not understood.
    """
    layouts: dict[int, Layout] = {}
    for name, attention in module.named_modules():
        if isinstance(attention, nn.MultiheadAttention):
            found = _split_torch(name, attention)
        else:
            found = _split(name, attention, chosen, fused_qkv)
        for parameter, layout in found:
            if layouts.setdefault(id(parameter), layout) != layout:
                raise ValueError(
                    "Partition.of: expected attention modules that share a parameter to split it "
                    f"alike, got {name or 'the module'}, which does not. Use 'tensor'."
                )
    if layouts.keys().isdisjoint(chosen):
        raise ValueError(
            f"Partition.of: expected attention with trainable parameters in "
            f"{type(module).__name__}, got none. Use 'tensor'."
        )
    return layouts


_Found = list[tuple[nn.Parameter, Layout]]


def _split_torch(name: str, attention: nn.MultiheadAttention) -> _Found:
    own = {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
    if not (own <= attention._parameters.keys() and _is_plain(attention.out_proj)):
        raise ValueError(
            f"Partition.of: expected the weights of {name or 'the module'} (MultiheadAttention) as "
            "its own parameters, got parametrized ones. Use 'tensor' or Partition.by_function."
        )
    heads, size = attention.num_heads, attention.head_dim
    fused, single = (3, heads, size), (heads, size)
    found: _Found = []
    for own_name, parameter in attention._parameters.items():
        if parameter is None:
            continue
        if own_name in ("bias_k", "bias_v"):  # (1, 1, E)
            found.append((parameter, Layout(single, (0,))))
        elif own_name.startswith("in_proj"):
            found.append((parameter, Layout((*fused, *parameter.shape[1:]), (0, 1))))
        elif own_name.endswith("_proj_weight"):
            found.append((parameter, Layout((*single, *parameter.shape[1:]), (0,))))
    out = attention.out_proj
    projection = _Projection("out_proj", out, out.out_features, out.in_features)
    return found + _split_inputs(projection, single)


def _split(
    name: str, attention: nn.Module, chosen: Collection[int], fused_qkv: FusedQKV | None
) -> _Found:
    heads = _num_heads(attention)
    projections = [
        _Projection(f"{name}.{child_name}" if name else child_name, child, *sizes)
        for child_name, child in attention.named_children()
        if (sizes := _linear_sizes(child)) is not None
    ]
    if heads is None or len(projections) < 2:
        return []
    if not any(id(p) in chosen for each in projections for p in each.module.parameters()):
        return []
    head_size, parts = _read(name, attention, heads, projections)
    found: _Found = []
    for projection, part in zip(projections, parts, strict=True):
        if part.num_parts == 0:
            found += _split_inputs(projection, (heads, head_size))
        elif part.num_parts == 1:
            found += _split_outputs(projection, (part.num_heads, head_size), (0,))
        else:
            order = "qkv_head" if is_conv1d(projection.module) else fused_qkv
            if order is None:
                raise ValueError(
                    f"Partition.of: expected `fused_qkv` for {projection.name}.weight, whose "
                    f"{projection.num_outputs} outputs are {part.num_parts} of query, key and "
                    f"value of {heads} heads in an order that its shape does not tell, got None. "
                    "Give 'qkv_head' if all heads' queries come first (nanoGPT, timm), 'head_qkv' "
                    "if all of the first head comes first (GPT-NeoX, BLOOM)."
                )
            counts = (part.num_parts, heads) if order == "qkv_head" else (heads, part.num_parts)
            found += _split_outputs(projection, (*counts, head_size), (0, 1))
    return found


def _read(
    name: str, attention: nn.Module, heads: int, projections: Sequence[_Projection]
) -> _Reading:
    stated = _own_int(attention, _HEAD_SIZE)
    readings = [
        reading
        for reading in _readings(heads, projections)
        if stated is None or reading.head_size == stated
    ]
    if len(readings) == 1 and all(_is_plain(p.module) for p in projections):
        return readings[0]
    sizes = ", ".join(f"{p.name}.weight ({p.num_inputs} to {p.num_outputs})" for p in projections)
    size = "heads" if stated is None else f"heads of size {stated}"
    raise ValueError(
        f"Partition.of: expected the linear maps of {name or 'the module'} "
        f"({type(attention).__name__}, {heads} {size}) to be, unparametrized and in one way only, "
        "q, k and v in one, two (kv and q) or three of them, then the output projection (or q, k "
        f"and v in three without it), got {sizes}. Use 'tensor' or Partition.by_function."
    )


def _readings(heads: int, projections: Sequence[_Projection]) -> list[_Reading]:
    """List the ways in which the sizes fit. Output projections come last."""
    *inner, last = projections
    outputs = [projection.num_outputs for projection in inner]
    width = last.num_inputs  # of all heads together
    readings = []
    fused = outputs == [3 * width] or sorted(outputs) == [width, 2 * width]
    if fused and width % heads == 0:
        parts = (*(_Part(size // width, heads) for size in outputs), _Part(0, heads))
        readings.append(_Reading(width // heads, parts))
    if len(inner) == 3 and width == max(outputs):
        readings += [
            _Reading(size, (*parts, _Part(0, heads))) for size, parts in _separate(heads, outputs)
        ]
    if len(inner) == 2:
        readings += _separate(heads, [*outputs, last.num_outputs])
    return readings


def _separate(heads: int, outputs: Sequence[int]) -> list[_Reading]:
    """Read three sizes as q, k and v in any order; k and v may have fewer heads."""
    least, middle, width = sorted(outputs)
    head_size = width // heads
    if width % heads or least != middle or least % head_size or heads % (least // head_size):
        return []
    return [_Reading(head_size, tuple(_Part(1, size // head_size) for size in outputs))]


def _split_outputs(
    projection: _Projection, outputs: tuple[int, ...], keep: tuple[int, ...]
) -> _Found:
    weight, bias = projection.module._parameters["weight"], projection.module._parameters["bias"]
    assert weight is not None
    if is_conv1d(projection.module):
        view = (projection.num_inputs, *outputs)
        found = [(weight, Layout(view, tuple(dim + 1 for dim in keep)))]
    else:
        found = [(weight, Layout((*outputs, projection.num_inputs), keep))]
    return found if bias is None else [*found, (bias, Layout(outputs, keep))]


def _split_inputs(projection: _Projection, inputs: tuple[int, int]) -> _Found:
    weight = projection.module._parameters["weight"]
    assert weight is not None
    if is_conv1d(projection.module):
        return [(weight, Layout((*inputs, projection.num_outputs), (0,)))]
    return [(weight, Layout((projection.num_outputs, *inputs), (1,)))]


def _is_plain(linear: nn.Module) -> bool:
    return {"weight", "bias"} <= linear._parameters.keys()


def _num_heads(module: nn.Module) -> int | None:
    heads = _own_int(module, _NUM_HEADS)
    if heads is None and _own_int(module, _HEAD_SIZE) is not None:
        heads = getattr(vars(module).get("config"), "num_attention_heads", None)
    return heads


def _own_int(module: nn.Module, names: Sequence[str]) -> int | None:
    values = (vars(module).get(name) for name in names)
    return next((v for v in values if isinstance(v, int) and v > 0), None)


def _linear_sizes(module: nn.Module) -> tuple[int, int] | None:
    """Numbers of outputs and inputs, None if this is no linear map."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if is_conv1d(module):
        weight = module._parameters["weight"]
        assert weight is not None
        return weight.shape[1], weight.shape[0]
    return None
