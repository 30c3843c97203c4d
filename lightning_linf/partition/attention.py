"""Recognise attention by its structure, and split its parameters by head."""

from collections.abc import Collection, Sequence

from torch import nn

from lightning_linf.partition.layouts import Layout
from lightning_linf.partition.orientation import is_conv1d
from lightning_linf.partition.placement import PlacementError, gathered
from lightning_linf.partition.projections import (
    Projection,
    Reading,
    head_size,
    linear_maps,
    num_heads,
    output_beside,
    read,
)
from lightning_linf.partition_names import FusedQKV

# Messages of errors; {} stands for the names of the attention modules that they are about.
_PARAMETRIZED = (
    "expected the weights of {} as its own parameters, got parametrized ones. Use 'tensor' or "
    "Partition.by_function."
)
_UNORDERED = (
    "expected `fused_qkv` for {}, in an order that its shape does not tell, got None. Give "
    "'qkv_head' if all heads' queries come first (nanoGPT, timm), 'head_qkv' if all of the first "
    "head comes first (GPT-NeoX, BLOOM)."
)
_UNREAD = (
    "expected attention to have one linear map (q, k and v together), two (q; k and v) or three "
    "(q; k; v), and then an output projection; or three and no output projection. All must be "
    "unparametrized, and their sizes must fit only one of these ways. Got {}. Use 'tensor' or "
    "Partition.by_function."
)


class _Fault(Exception):
    """Raised for one attention module that cannot be split; :func:`by_head` joins them.

    Args:
        text: One of the messages above.
        got: What takes the place of {} in it.
    """

    def __init__(self, text: str, got: str) -> None:
        super().__init__(text, got)
        self.text, self.got = text, got


def by_head(
    module: nn.Module, chosen: Collection[int], fused_qkv: FusedQKV | None
) -> dict[int, Layout]:
    """Lay out the parameters of all attention in a module by head.

    Args:
        module: The module whose submodules are searched.
        chosen: The identities of the parameters to split. Attention without any is passed over.
        fused_qkv: Order of the outputs of an ``nn.Linear`` that computes several of query, key and
            value.

    Returns:
        By the identity of a parameter, its layout. Parameters of other modules are missing.

    Raises:
        PlacementError: If no attention is found, or one is not understood.
    """
    layouts: dict[int, Layout] = {}
    faults: dict[str, list[str]] = {}
    for name, attention in module.named_modules():
        try:
            if isinstance(attention, nn.MultiheadAttention):
                found = _split_torch(name, attention)
            else:
                parent = module.get_submodule(name.rpartition(".")[0])
                found = _split(name, attention, parent, chosen, fused_qkv)
        except _Fault as fault:
            faults.setdefault(fault.text, []).append(fault.got)
            continue
        for parameter, layout in found:
            if layouts.setdefault(id(parameter), layout) != layout:
                raise PlacementError(
                    "Partition.of: expected attention modules that share a parameter to split it "
                    f"alike, got {name or 'the module'}, which does not. Use 'tensor'."
                )
    if faults:
        sentences = (text.format("; ".join(gathered(got))) for text, got in faults.items())
        raise PlacementError(" ".join(f"Partition.of: {sentence}" for sentence in sentences))
    if layouts.keys().isdisjoint(chosen):
        raise PlacementError(
            f"Partition.of: expected attention with trainable parameters in "
            f"{type(module).__name__}, got none. Use 'tensor'."
        )
    return layouts


_Found = list[tuple[nn.Parameter, Layout]]


def _split_torch(name: str, attention: nn.MultiheadAttention) -> _Found:
    own = {"in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"}
    if not (own <= attention._parameters.keys() and _is_plain(attention.out_proj)):
        raise _Fault(_PARAMETRIZED, f"{name or 'the module'} (MultiheadAttention)")
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
    projection = Projection("out_proj", out, out.out_features, out.in_features)
    return found + _split_inputs(projection, single)


def _split(
    name: str,
    attention: nn.Module,
    parent: nn.Module,
    chosen: Collection[int],
    fused_qkv: FusedQKV | None,
) -> _Found:
    heads = num_heads(attention)
    projections = linear_maps(attention.named_children(), name)
    if heads is None or len(projections) < 2:
        return []
    parent_name = name.rpartition(".")[0]
    beside = output_beside(projections, parent, parent_name) if len(projections) == 3 else []
    if not any(id(p) in chosen for m in (*projections, *beside) for p in m.module.parameters()):
        return []
    reading = _read(name, attention, heads, projections)
    if beside and all(part.num_parts for part in reading.parts):  # the output is not among them
        projections += beside
        reading = _read(name, attention, heads, projections)
    size = reading.head_size
    found: _Found = []
    for projection, part in zip(projections, reading.parts, strict=True):
        if part.num_parts == 0:
            found += _split_inputs(projection, (heads, size))
        elif part.num_parts == 1:
            found += _split_outputs(projection, (part.num_heads, size), (0,))
        else:
            order = "qkv_head" if is_conv1d(projection.module) else fused_qkv
            if order is None:
                raise _Fault(
                    _UNORDERED,
                    f"{projection.name}.weight, whose {projection.num_outputs} outputs are "
                    f"{part.num_parts} of query, key and value of {heads} heads",
                )
            counts = (part.num_parts, heads) if order == "qkv_head" else (heads, part.num_parts)
            found += _split_outputs(projection, (*counts, size), (0, 1))
    return found


def _read(
    name: str, attention: nn.Module, heads: int, projections: Sequence[Projection]
) -> Reading:
    stated = head_size(attention)
    readings = read(heads, stated, projections)
    if len(readings) == 1 and all(_is_plain(p.module) for p in projections):
        return readings[0]
    sizes = ", ".join(f"{p.name}.weight ({p.num_inputs} to {p.num_outputs})" for p in projections)
    size = "heads" if stated is None else f"heads of size {stated}"
    kind = type(attention).__name__
    raise _Fault(_UNREAD, f"{name or 'the module'} ({kind}, {heads} {size}): {sizes}")


def _split_outputs(
    projection: Projection, outputs: tuple[int, ...], keep: tuple[int, ...]
) -> _Found:
    weight, bias = projection.module._parameters["weight"], projection.module._parameters["bias"]
    assert weight is not None
    if is_conv1d(projection.module):
        view = (projection.num_inputs, *outputs)
        found = [(weight, Layout(view, tuple(dim + 1 for dim in keep)))]
    else:
        found = [(weight, Layout((*outputs, projection.num_inputs), keep))]
    return found if bias is None else [*found, (bias, Layout(outputs, keep))]


def _split_inputs(projection: Projection, inputs: tuple[int, int]) -> _Found:
    weight = projection.module._parameters["weight"]
    assert weight is not None
    if is_conv1d(projection.module):
        return [(weight, Layout((*inputs, projection.num_outputs), (0,)))]
    return [(weight, Layout((projection.num_outputs, *inputs), (1,)))]


def _is_plain(linear: nn.Module) -> bool:
    return {"weight", "bias"} <= linear._parameters.keys()
