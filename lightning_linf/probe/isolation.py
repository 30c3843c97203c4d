"""Run a module's own code and leave no trace of it."""

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

# Objects of these packages are machinery (trainers, loggers, compilers' caches) that is reachable
# from a module but not part of its state; torch.nn.Module and tensors are.
_MACHINERY = {
    *("torch", "lightning", "pytorch_lightning", "lightning_fabric", "numpy"),
    *("wandb", "mlflow", "comet_ml", "neptune", "clearml", "tensorboardX"),
    *(sys.stdlib_module_names - {"collections"}),
}
_THREADING = {"_thread", "threading", "queue", "asyncio", "multiprocessing"}
_TABLES_OF_TENSORS = ("_parameters", "_buffers")


@contextmanager
def untouched(module: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore everything that running ``module`` may change, also after an exception.

    That is: every attribute reachable from the module through submodules, containers and plain
    objects (training flags, hooks, counters, lists, torchmetrics states, generators), the entries
    of the parameter and buffer tables, and the random state of torch on every device, Python and
    NumPy. While it is open, ``self.log`` and ``self.log_dict`` do nothing and the trainer's loggers
    are dummies. The *values* of parameters and buffers are not copied: whoever runs the module
    replaces the table entries. State outside the module (globals, closures, files) is the user's.

    Yields:
        A function that goes back to the state on entering (logging still off), so that the module
        can be run again and does the same again.
    """
    trainer = module._trainer if isinstance(module, LightningModule) else None
    loggers = list(trainer.loggers) if isinstance(trainer, Trainer) else []
    restores = [*_capture_state(module), _capture_random()]

    def restore() -> None:
        for step in restores:
            step()

    def rewind() -> None:
        restore()
        for part in module.modules():
            if isinstance(part, LightningModule):
                part.__dict__.update(log=_ignore, log_dict=_ignore)

    try:
        rewind()
        if isinstance(trainer, Trainer):
            trainer.loggers = [DummyLogger() for _ in loggers]
        yield rewind
    finally:
        restore()
        if isinstance(trainer, Trainer):
            trainer.loggers = loggers


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stand in for ``self.log``."""


def _capture_random() -> Callable[[], None]:
    cpu, python = torch.get_rng_state(), random.getstate()
    numpy = np.random.get_state()  # noqa: NPY002  # the global state is what modules draw from
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore() -> None:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)

    return restore


def _capture_state(module: nn.Module) -> list[Callable[[], None]]:
    """Walk what is reachable from ``module`` and return what puts each piece back."""
    restores: list[Callable[[], None]] = []
    seen: set[int] = set()
    pending: list[Any] = [module]
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, (int, float, str, bytes, type(None))):
            continue
        seen.add(id(value))
        if isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter):
                restores.append(_capture_tensor(value))
        elif isinstance(value, np.ndarray):
            restores.append(_capture_array(value))
        elif isinstance(value, (torch.Generator, np.random.Generator, random.Random)):
            restores.append(_capture_generator(value))
        elif isinstance(value, (dict, list, set, deque)):
            restores.append(_capture_container(value))
            pending.extend(value.values() if isinstance(value, dict) else value)
            pending.extend(getattr(value, "__dict__", {}).values())
        elif isinstance(value, (tuple, frozenset)):
            pending.extend(value)
        elif isinstance(value, nn.Module) or _is_plain_object(value):
            restores.extend(_capture_attributes(value, pending))
    return restores


def _is_plain_object(value: Any) -> bool:
    if isinstance(value, SimpleNamespace):
        return True
    if isinstance(value, (type, ModuleType, Dataset, DataLoader, Trainer)):
        return False
    attributes = getattr(value, "__dict__", {}).values()
    if any(_package(attribute) in _THREADING for attribute in attributes):
        return False  # another thread may be at work on it, whose progress is not ours to undo
    return _package(value) not in _MACHINERY


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _capture_attributes(value: Any, pending: list[Any]) -> list[Callable[[], None]]:
    restores: list[Callable[[], None]] = []
    attributes = getattr(value, "__dict__", None)
    if attributes is not None:
        restores.append(_capture_container(attributes))
        for name, attribute in attributes.items():
            if name in _TABLES_OF_TENSORS and isinstance(value, nn.Module):
                restores.append(_capture_container(attribute))
            else:
                pending.append(attribute)
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                attribute = getattr(value, name)
                restores.append(partial(object.__setattr__, value, name, attribute))
                pending.append(attribute)
    return restores


def _capture_container(value: Any) -> Callable[[], None]:
    saved = dict(value) if isinstance(value, dict) else list(value)

    def restore() -> None:
        value.clear()
        (value.extend if isinstance(value, (list, deque)) else value.update)(saved)

    return restore


def _capture_tensor(value: Tensor) -> Callable[[], None]:
    saved = value.detach().clone()

    def restore() -> None:
        # .data: a graph that the training holds on this tensor must not see a new version.
        with torch.inference_mode(value.is_inference()):
            value.data.copy_(saved)

    return restore


def _capture_array(value: np.ndarray[Any, Any]) -> Callable[[], None]:
    saved = value.copy()

    def restore() -> None:
        if value.flags.writeable:
            value[...] = saved

    return restore


def _capture_generator(value: Any) -> Callable[[], None]:
    if isinstance(value, torch.Generator):
        return partial(_set_generator_state, value, value.get_state())
    if isinstance(value, random.Random):
        return partial(value.setstate, value.getstate())
    return partial(setattr, value.bit_generator, "state", value.bit_generator.state)


def _set_generator_state(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)
