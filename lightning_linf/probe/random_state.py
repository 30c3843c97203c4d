"""Random state: the global one of torch, Python and NumPy, and that of generators."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch


def capture_random() -> Callable[[], object]:
    """Keep the random state of torch on every device, Python and NumPy; calling it puts it back."""
    cpu, python = torch.get_rng_state(), random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002  # the global state is what modules draw from
    has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cuda = torch.cuda.get_rng_state_all() if has_cuda else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed the random state of torch, Python and NumPy."""
    if device.type == "cpu" and not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        # torch.manual_seed would also seed a CUDA that starts later, and format the stack for that.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  # the global state is what modules draw from


def is_generator(value: Any) -> bool:
    """Whether an object draws random numbers from a state of its own."""
    kinds = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
    return isinstance(value, kinds) and not isinstance(value, random.SystemRandom)


def capture_generator(value: Any) -> Callable[[], object]:
    """Keep the state of a generator; calling it puts it back."""
    if isinstance(value, torch.Generator):
        return partial(value.set_state, value.get_state())
    if isinstance(value, np.random.RandomState):
        return partial(value.set_state, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return partial(setattr, value.bit_generator, "state", value.bit_generator.state)
