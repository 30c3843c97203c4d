"""What ranks send each other: bytes of collectives, counted where torch dispatches them."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # torch documents it under this name

# By a part of a collective's name, in the order in which they are looked for: times (W - 1) / W,
# what a rank sends of a message among W ranks, by the best algorithm for large messages.
_SHARE_SENT = {
    "wait": 0.0,  # for one that was counted when it began
    "wrap": 0.0,
    "barrier": 0.0,
    "reduce_scatter": 1.0,
    "allgather": 1.0,
    "all_gather": 1.0,
    "alltoall": 1.0,
    "all_to_all": 1.0,
    "allreduce": 2.0,
    "all_reduce": 2.0,
    "broadcast": 1.0,
}


class Traffic(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Count what this rank sends while inside: ``sent[name]`` in bytes, ``calls[name]``.

    torch.distributed's functions, those of DTensor and of ``fully_shard`` all end in operators of
    these namespaces. A message is the largest of a collective's operands: the gathered tensor of
    an all-gather, what each rank gives to a reduce-scatter.
    """

    def __init__(self, num_ranks: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self._num_ranks = num_ranks

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace in ("c10d", "_c10d_functional"):
            operands = [*args, *(kwargs or {}).values(), result]
            self._add(str(func.__name__).split(".")[0], max(map(_num_bytes, operands)))
        return result

    def _add(self, operator: str, num_bytes: int) -> None:
        name = next((known for known in _SHARE_SENT if known in operator), None)
        if name is None:
            raise ValueError(
                f"Traffic: expected one of {', '.join(_SHARE_SENT)}, got {operator}. Say there "
                "what a rank sends of it."
            )
        if share := _SHARE_SENT[name]:
            name = name.replace("all_gather", "allgather").replace("all_reduce", "allreduce")
            name = name.replace("all_to_all", "alltoall")
            self.calls[name] += 1
            self.sent[name] += round(share * num_bytes * (self._num_ranks - 1) / self._num_ranks)

    @property
    def total(self) -> int:
        """Bytes that this rank has sent."""
        return sum(self.sent.values())


def _num_bytes(operand: Any) -> int:
    if isinstance(operand, (list, tuple)):
        return sum(map(_num_bytes, operand))
    return operand.nbytes if isinstance(operand, Tensor) else 0


def of(action: Any) -> Traffic:
    """Run an action and count what this rank sends in it."""
    with Traffic(torch.distributed.get_world_size()) as traffic:
        action()
    return traffic
