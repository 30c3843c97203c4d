"""Which parameters of a module are hidden matrices, those that Muon is made for."""

from collections.abc import Sequence

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lightning_linf.partition.orientation import Owner, is_conv1d, known_orientations
from lightning_linf.partition.pieces import owners

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def hidden_matrices(module: nn.Module) -> list[str]:
    """List the weights of two dimensions that map one hidden layer to another, by name.

    They are the weights of linear maps, of attention and of recurrent layers, also frozen ones. Not
    among them are embeddings; the head, which is the linear map that shares its weight with an
    embedding, or else the last one in the order of submodules; convolutions; and parameters that
    belong to no known layer. Modules go by their types, not their names.

    Args:
        module: The module. A tied weight has its first name.

    Raises:
        ValueError: If a parameter is still lazy.

    Source:
        Muon's author gives it the matrices of hidden layers, and embedding, head and vectors to
        AdamW: Jordan, kellerjordan.github.io/posts/muon.

    Example:
        >>> module = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9))
        >>> hidden_matrices(module)
        ['1.weight']
    """
    owned, head = owners(module), _head(module)
    names = []
    for name, p in module.named_parameters():
        if isinstance(p, UninitializedParameter):
            raise ValueError(
                f"hidden_matrices: expected initialized parameters, but {name} is still lazy. Run "
                "the module once first."
            )
        if p is not head and _maps_units(p, owned[id(p)]):
            names.append(name)
    return names


def _maps_units(p: nn.Parameter, owners: Sequence[Owner]) -> bool:
    """Tell whether a parameter is a matrix from one layer's units to another's."""
    views = [each.view for each in known_orientations(p.shape, owners)]
    embeds = any(isinstance(owner.module, _EMBEDDINGS) for owner in owners)
    return p.ndim == 2 and not embeds and any(len(view) == 2 for view in views)


def _head(module: nn.Module) -> nn.Parameter | None:
    """Find the last linear map's weight, or None if one shares that of an embedding."""
    modules = list(module.modules())
    embedded = {id(each.weight) for each in modules if isinstance(each, _EMBEDDINGS)}
    linear = [each for each in modules if isinstance(each, nn.Linear) or is_conv1d(each)]
    weights = [weight for each in linear if (weight := each._parameters.get("weight")) is not None]
    if not weights or any(id(weight) in embedded for weight in weights):
        return None
    return weights[-1]
