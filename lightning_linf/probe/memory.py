"""How much memory a probe will take, before it runs."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_linf.argument_checks import check_whole
from lightning_linf.functional.offload import Offload
from lightning_linf.probe.batch_copy import split_batch
from lightning_linf.probe.batch_list import list_batches
from lightning_linf.probe.functional_module import Mode
from lightning_linf.probe.landscape import Landscape
from lightning_linf.probe.memory_by_phase import ProbeMemory


def probe_memory(
    module: nn.Module,
    batches: Sequence[Any] | Iterable[Any],
    *,
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    num_probes: int = 16,
    num_partitions: int = 4,
    num_parts: int = 1,
    mode: Mode = "eval",
    parameters: Collection[nn.Parameter] | None = None,
    offload: Offload | None = None,
    whole_parameters: bool = False,
) -> ProbeMemory:
    """Say what :func:`measure_geometry` will take of a device's memory, phase by phase.

    The loss, its gradient and one product are run on tensors without values, so that nothing is
    computed and no memory is needed. What they would hold, the graph, is added to the vectors of
    each phase. Probes and partitions count only with several batches, when several products are
    formed at a time: otherwise they follow each other, and "coordinate", which is always measured,
    takes most.

    Not counted are workspaces inside fused kernels, what the allocator loses, a reparameterization,
    and the check of a loss in float64, which follows where gradients and products disagree.

    Args:
        module: As all others, of :func:`measure_geometry`.
        batches: As there.
        loss: As there.
        num_probes: As there.
        num_partitions: How many partitions, with "coordinate" and "global".
        num_parts: Into how many parts to split each batch, by samples. The mean over parts is the
            same loss where this is a mean over samples.
        mode: As there.
        parameters: Of the trainable parameters only these.
        offload: As there.
        whole_parameters: As there. Otherwise, of a sharded module, what one rank needs: its shards
            of vectors, and the largest parameter or two whole. All ranks must call this.

    Returns:
        Bytes by phase; ``print`` shows them.

    Raises:
        ValueError: If an argument has a wrong value.
        ProbeError: If the module needs values to run, and what :class:`Landscape` raises.

    Example:
        >>> module, x = nn.Linear(1000, 1000), Tensor(2, 1000)
        >>> memory = probe_memory(module, [x], loss=lambda m, x: m(x).square().mean())
        >>> memory.peak // memory.vector
        12
    """
    check_whole("probe_memory", "num_parts", num_parts, 1)
    batches = list_batches("probe_memory", "batches", batches)
    parts = [part for batch in batches for part in split_batch(batch, num_parts)]
    with Landscape(
        module,
        parts,
        loss=loss,
        mode=mode,
        parameters=parameters,
        offload=offload,
        whole_parameters=whole_parameters,
    ) as landscape:
        return landscape.memory(num_probes, num_partitions)
