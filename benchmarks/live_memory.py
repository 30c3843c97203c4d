"""How much memory is in use at once while something runs, by what the allocator says."""

from collections.abc import Callable

import torch
from torch.autograd.profiler import profile


def peak_bytes(action: Callable[[], object], device: torch.device) -> int:
    """Run an action; the most bytes that it had in use at once, beyond those before.

    On the CPU torch's profiler reports every allocation and release, those inside an operation
    included; on CUDA the caching allocator keeps the count itself.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(profile_memory=True) as profiler:
        action()
    events = profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    in_use = most = 0
    for _, num_bytes in sorted(changes, key=lambda change: change[0]):
        in_use += num_bytes
        most = max(most, in_use)
    return most


def free_gib(device: torch.device) -> float:
    """What a CUDA device has free for a process that has nothing cached, in GiB."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0] / 2**30
