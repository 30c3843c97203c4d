"""Which of the objects that a module refers to are part of its state."""

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.quasirandom import SobolEngine
from torch.utils.data import DataLoader, Dataset, Sampler

from lightning_linf.lightning_packages import is_either

# Objects of these packages are machinery or data that a module may refer to, but not part of its
# state, except for modules, tensors and generators.
_NOT_STATE = {
    *("torch", "lightning", "pytorch_lightning", "lightning_fabric", "numpy", "tokenizers"),
    *("wandb", "mlflow", "comet_ml", "neptune", "clearml", "tensorboardX"),
    *("datasets", "pandas", "polars", "pyarrow", "PIL", "scipy", "sklearn"),
    *(sys.stdlib_module_names - {"collections"}),
}
_STATE = (nn.Module, SobolEngine, SimpleNamespace)  # whatever their package
_THREADING = {"_thread", "threading", "queue", "asyncio", "multiprocessing"}


def has_state(value: Any) -> bool:
    """Whether the attributes of an object are part of a module's state."""
    if isinstance(value, _STATE):
        return True
    return not (_has_threads(value) or is_machinery(value) or isinstance(value, np.ndarray))


def is_data_source(value: Any) -> bool:
    """Whether an object gives samples: its attributes are state, what they hold is data."""
    return isinstance(value, (Dataset, DataLoader, Sampler)) and not _has_threads(value)


def is_machinery(value: Any) -> bool:
    """Whether an object is a data set, or of a package whose objects are not state."""
    if isinstance(value, (Dataset, DataLoader)) or is_either(value, LightningDataModule, Trainer):
        return True
    return _package(value) in _NOT_STATE and not isinstance(value, _STATE)


def slots_of(value: Any) -> Iterator[tuple[str, Any]]:
    """Give names and values of those ``__slots__`` of an object that are set."""
    for cls in type(value).__mro__:
        names = cls.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


def _has_threads(value: Any) -> bool:
    """Whether another thread may work on an object, so that its progress must not be undone."""
    attributes = getattr(value, "__dict__", {})
    return any(_package(attribute) in _THREADING for attribute in attributes.values())


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]
