"""How many vectors of d numbers are alive at once, phase by phase, by what the allocator says.

The profiler of torch reports each allocation and each release on the CPU, also those inside an
operation (a sum in float64 copies all that it adds up). Added up in order, they give the memory
that is alive beyond that of the start.
"""

import gc
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from operator import attrgetter

import numpy as np
import torch
import torch.distributed as dist
from torch.autograd.profiler import profile, record_function

_PREFIX = "phase: "
PROBE = "lightning_linf.probe"
# By phase, the functions that make it up: module and name of what the probe calls.
PHASES = {
    "entering": [(f"{PROBE}.landscape", "Landscape.__enter__")],
    "loss check": [(f"{PROBE}.landscape", "Landscape.check")],
    "gradient": [(f"{PROBE}.landscape", "Landscape.gradient")],
    "noise": [(f"{PROBE}.noise", "measure_noise")],
    "product": [
        (f"{PROBE}.landscape", "Landscape.hvp"),
        (f"{PROBE}.landscape", "Landscape.curvatures"),
    ],
    "products of halves": [(f"{PROBE}.landscape", "Landscape.hvp_of_halves")],
    "curvatures": [(f"{PROBE}.gradient", "curvatures")],
    "secants": [(f"{PROBE}.gradient", "secants")],
    "dual norms": [(f"{PROBE}.gradient", "dual_norms")],
    "step errors": [(f"{PROBE}.gradient", "step_errors")],
    "probes": [(f"{PROBE}.brackets", "estimated_upper_bound")],
    "surrogates": [
        (f"{PROBE}.upper_bounds", "cross_fitted_one_one_norm_compute"),
        (f"{PROBE}.upper_bounds", "block_smoothness_compute"),
    ],
    "operator norm": [(f"{PROBE}.brackets", "operator_norm")],
    "heterogeneity": [(f"{PROBE}.gradient", "heterogeneity_update")],
    "R^2": [(f"{PROBE}.gradient", "between_within")],
}


class VectorCount:
    """What was alive while the phases ran, in vectors of ``num_params`` numbers.

    Attributes:
        peak: The largest number of all.
        peaks: The largest number while each phase ran; phases may lie in each other.
        starts: The number when each phase began, where it was largest.
    """

    def __init__(self, num_params, itemsize=4):
        self.vector_bytes = num_params * itemsize
        self.peak, self.peaks, self.starts = 0.0, {}, {}

    def read(self, events):
        """Replay the events of a profiler."""
        timeline = []  # time, order at one time, what happens
        for event in events:
            start = event.start_ns()
            if event.name() == "[memory]":
                timeline.append((start, 1, event.nbytes()))
            elif event.name().startswith(_PREFIX):
                name = event.name().removeprefix(_PREFIX)
                timeline += [(start, 0, (name, 1)), (start + event.duration_ns(), 2, (name, -1))]
        alive, active = 0, {}
        for _, kind, what in sorted(timeline, key=lambda entry: entry[:2]):
            if kind == 1:
                alive += what
            else:
                name, change = what
                active[name] = active.get(name, 0) + change
                if change > 0:
                    self._raise(self.starts, name, alive)
            for name, count in active.items():
                if count:
                    self._raise(self.peaks, name, alive)
            self.peak = max(self.peak, alive / self.vector_bytes)

    def _raise(self, where, name, alive):
        where[name] = max(where.get(name, 0.0), alive / self.vector_bytes)

    def __str__(self):
        lines = [f"{'phase':<20} {'at its start':>12} {'at its peak':>12}"]
        for name, peak in self.peaks.items():
            lines.append(f"{name:<20} {self.starts[name]:>12.1f} {peak:>12.1f}")
        return "\n".join([*lines, f"{'in all':<20} {'':>12} {self.peak:>12.1f}"])


@contextmanager
def releasing_here():
    """Let threads of gloo release what they exchanged before the caller goes on.

    Whoever releases a tensor last frees it, and the profiler misses what another thread frees.
    """
    functions = {name: getattr(dist, name) for name in ("all_to_all_single", "all_reduce")}

    def waiting(function):
        def call(*args, **options):
            tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
            counts = [tensor._use_count() for tensor in tensors]
            result = function(*args, **options)
            while any(t._use_count() > count for t, count in zip(tensors, counts, strict=True)):
                time.sleep(1e-4)
            return result

        return call

    for name, function in functions.items():
        setattr(dist, name, waiting(function))
    try:
        yield
    finally:
        for name, function in functions.items():
            setattr(dist, name, function)


@contextmanager
def collecting_nothing():
    """Leave cycles alone, so that it is not chance whether and when they are freed.

    What earlier tests have left in cycles is freed before.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def counted_vectors(num_params, phases=PHASES):
    """Count the vectors that are alive inside; the count is filled in on leaving."""
    count = VectorCount(num_params)
    marked = {_code_of(*each): name for name, functions in phases.items() for each in functions}
    running = []

    def mark(frame, event, argument):
        # Not a wrapper: that would hold the arguments, which a function may drop.
        name = marked.get(frame.f_code)
        if name is not None and event == "call":
            running.append(record_function(_PREFIX + name))
            running[-1].__enter__()
        elif name is not None and event == "return":
            running.pop().__exit__(None, None, None)

    with releasing_here(), collecting_nothing(), profile(profile_memory=True) as profiler:
        sys.setprofile(mark)
        try:
            yield count
        finally:
            sys.setprofile(None)
    count.read(profiler.kineto_results.events())


def memory_elsewhere(like):
    """Memory that is not counted, in place of that of a CPU beside a GPU."""
    plain = torch.from_numpy(np.empty(like.numel() * like.itemsize, dtype=np.uint8))
    return plain.view(like.dtype).view(like.shape)


def _code_of(module, function):
    return attrgetter(function)(import_module(module)).__code__
