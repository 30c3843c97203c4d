"""Whether a module with tensor parallelism has the same loss when it runs as on one device."""

from lightning_linf.errors import RefusedLossError
from lightning_linf.probe.functional_module import FunctionalModule

_TOLERANCE, _COARSE = 1e-3, 5e-2  # relative; of float32 and wider, and of narrower parameters


def require_parallel_loss(function: FunctionalModule) -> None:
    """Compare the loss of the first batch with that which the module's own shards give.

    A probe runs a module with whole weights and without the hooks of tensor parallelism. Code that
    counts on shards may run so, too, and be another function. All ranks must call this.

    Args:
        function: Between entering and leaving, in the mode "eval": masks of dropout would differ.

    Raises:
        RefusedLossError: If the two are not equal but for rounding.
    """
    ours, theirs = function.evaluate(0)[1].item(), function.loss_in_parallel(0)
    tolerance = _COARSE if function.parameters.widen else _TOLERANCE
    if not abs(ours - theirs) <= tolerance * max(abs(ours), abs(theirs)):
        raise RefusedLossError(
            f"probe: expected the loss {theirs:.6g} that the module has on the shards of tensor "
            f"parallelism, got {ours:.6g} where it runs with whole weights, as on one device. Code "
            "that counts on shards (heads divided by the number of ranks) must take sizes from its "
            "inputs, such as view(batch, length, -1, head_dim)."
        )
