"""Find which dimensions of a parameter are outputs and inputs, from the modules that hold it."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn.utils.parametrize import ParametrizationList

from lightning_linf.partition.layouts import Layout
from lightning_linf.partition.placement import PlacementError, expression, gathered


class Owner(NamedTuple):
    """A module that holds a parameter, and the parameter's name in it, "weight" for example."""

    module: nn.Module
    name: str


class Orientation(NamedTuple):
    """Which dimensions of a parameter, viewed in a shape, number its output and input units.

    The weight of ``nn.Linear(3, 2)``, for example, is ``Orientation((2, 3), (0,), (1,))``.
    """

    view: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]
    is_assumed: bool = False


# Modules with a weight of shape (output, ...); the row of an embedding is that of one token.
_OUTPUT_FIRST = (nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_ELEMENTWISE = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU, nn.SyncBatchNorm),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def rows_or_columns(
    side: Literal["row", "column"],
    named: Mapping[str, nn.Parameter],
    owners: Mapping[int, Sequence[Owner]],
    output_dims: Mapping[str, int],
) -> list[Layout]:
    """Lay out parameters with one block for each output unit (row) or each input unit (column).

    Args:
        side: What the blocks are.
        named: The parameters.
        owners: By the identity of a parameter, the modules that hold it.
        output_dims: As in :meth:`~lightning_linf.Partition.of`.

    Raises:
        PlacementError: If the modules that share a parameter contradict each other, or if a
            parametrization makes a module's weight from it, so that its dimensions may be any.
        ValueError: If ``output_dims`` does not fit the parameters.
    """
    _check_patterns(named, output_dims)
    layouts, unplaced = [], {}
    for name, p in named.items():
        found = _stated(name, p.shape, output_dims) or _by_type(p.shape, owners[id(p)])
        if found is None:
            unplaced[name] = p
        else:
            kept = found.outputs if side == "row" else found.inputs
            layouts.append(Layout(found.view, kept, is_assumed=found.is_assumed))
    if unplaced:
        raise _contradiction(unplaced, owners)
    return layouts


def _check_patterns(named: Mapping[str, nn.Parameter], output_dims: Mapping[str, int]) -> None:
    """Raise a ValueError for a pattern that fits no name of a parameter with two dimensions."""
    for pattern in output_dims:
        if not any(p.ndim > 1 and re.search(pattern, name) for name, p in named.items()):
            raise ValueError(
                "Partition.of: expected every pattern of `output_dims` in the name of a trainable "
                f"parameter of two or more dimensions, got {pattern!r}, which is in none. "
                "Correct it or leave it out."
            )


def is_conv1d(module: nn.Module) -> bool:
    """Recognise transformers' Conv1D, a linear map that stores its weight as (in, out)."""
    num_outputs = vars(module).get("nf")
    if not isinstance(num_outputs, int):
        return False
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2 and weight.shape[1] == num_outputs


def _stated(name: str, shape: torch.Size, output_dims: Mapping[str, int]) -> Orientation | None:
    ndim = len(shape)
    pattern = next((pattern for pattern in output_dims if re.search(pattern, name)), None)
    if pattern is None or ndim < 2:  # a vector has only one dimension, which is the output
        return None
    dim = output_dims[pattern]
    if not -ndim <= dim < ndim:
        raise ValueError(
            f"Partition.of: expected `output_dims` to name a dimension of {name} {tuple(shape)}, "
            f"got {dim} from {pattern!r}. Count from 0."
        )
    output = dim % ndim
    return Orientation(tuple(shape), (output,), (0 if output else 1,))


def _by_type(shape: torch.Size, owners: Sequence[Owner]) -> Orientation | None:
    known = known_orientations(shape, owners)
    if len(known) == 1:
        return known.pop()
    # A parametrization may make a weight from tensors of any shape, so nothing is assumed of them.
    is_raw = not any(isinstance(owner.module, ParametrizationList) for owner in owners)
    return _assumed(shape) if is_raw and not known else None


def known_orientations(shape: torch.Size, owners: Sequence[Owner]) -> set[Orientation]:
    """Tell outputs from inputs by each of the modules that hold a parameter, where it tells."""
    found = [_orientation(owner, shape) for owner in owners]
    return {orientation for orientation in found if orientation is not None}


def _assumed(shape: torch.Size) -> Orientation:
    """Take the first dimension for the output and the next one for the input.

    Leading dimensions of size one, along which a batch is broadcast, are passed over as long as two
    others remain: a (1, n, e) tensor of positions has n rows, and a (1, 1, e) token is one row.
    """
    output = 0
    while output < len(shape) - 2 and shape[output] == 1:
        output += 1
    return Orientation(tuple(shape), (output,), (output + 1,), is_assumed=True)


def _contradiction(
    unplaced: Mapping[str, nn.Parameter], owners: Mapping[int, Sequence[Owner]]
) -> PlacementError:
    """Make one error that names all parameters without known rows, and the argument to give."""
    by_cause: dict[str, list[str]] = {}
    for name, p in unplaced.items():
        types = " and ".join(type(owner.module).__name__ for owner in owners[id(p)])
        is_known = len(known_orientations(p.shape, owners[id(p)])) > 0
        cause = "which contradict each other" if is_known else "which tells nothing"
        by_cause.setdefault(f"{tuple(p.shape)} of {types}, {cause}", []).append(name)
    got, patterns = [], []
    for cause, names in by_cause.items():
        for shown, members in gathered(names).items():
            got.append(f"{shown} {cause}")
            patterns.append(expression(members))
    dims = ", ".join(f"{each!r}: that dimension" for each in dict.fromkeys(patterns))
    return PlacementError(
        "Partition.of: expected modules that tell which dimension of every parameter is the "
        f"output, got {'; '.join(got)}. Give output_dims={{{dims}}}."
    )


def _orientation(owner: Owner, shape: torch.Size) -> Orientation | None:
    """Tell outputs from inputs by the type of a module; None if that does not tell."""
    module, name = owner
    vector = Orientation((shape.numel(),), (0,), ())
    output_first = Orientation(tuple(shape), (0,), tuple(range(1, len(shape))))
    if len(shape) < 2 or (isinstance(module, _ELEMENTWISE) and name in ("weight", "bias")):
        return vector
    if isinstance(module, nn.MultiheadAttention):
        if name in ("bias_k", "bias_v"):  # (1, 1, E)
            return vector
        return output_first if name.endswith("proj_weight") else None
    if isinstance(module, _RECURRENT):
        return output_first if name.startswith(("weight_ih", "weight_hh", "weight_hr")) else None
    if name != "weight":  # a subclass may add others, such as the factors of a low-rank update
        return None
    if isinstance(module, _OUTPUT_FIRST):
        return output_first
    if isinstance(module, (*_CONV, *_CONV_TRANSPOSE)):
        # Channels come in groups, each with inputs and outputs of its own. The first dimension of
        # the weight runs over the channels of all groups, the second over those of one group.
        groups = module.groups
        view = (groups, shape[0] // groups, shape[1], shape[2:].numel())
        zero, one = (0, 1), (0, 2)
        return (
            Orientation(view, zero, one)
            if isinstance(module, _CONV)
            else Orientation(view, one, zero)
        )
    if is_conv1d(module):
        return Orientation(tuple(shape), (1,), (0,))
    return None
