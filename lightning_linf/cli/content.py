"""Read a checkpoint file, or say in one sentence why it is none that Lightning has saved."""

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_linf.cli.errors import UsageError

_EXPECTED = "measure: expected CHECKPOINT to be a file that Lightning has saved"
_VERSION_KEY = "pytorch-lightning_version"
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)*(\+[\w.]+)?")
_PARTS = (LightningModule, LightningDataModule)
_HYPERPARAMETERS = (
    *(cls.CHECKPOINT_HYPER_PARAMS_KEY for cls in _PARTS),
    *("hparams", "module_arguments"),  # of Lightning before 0.8, which it still reads
)
_NAMES_OF_ONE_ARGUMENT = [cls.CHECKPOINT_HYPER_PARAMS_NAME for cls in _PARTS]
_SAVE_ANEW = "Save it anew with trainer.save_checkpoint."
_CONSOLIDATE = "python -m lightning.pytorch.utilities.consolidate_checkpoint"


def read_content(path: Path, trusted: bool) -> dict[str, Any]:
    """Read a checkpoint, on the CPU.

    Args:
        path: The file.
        trusted: Read objects of any class, too. They can run any code while they are read.

    Raises:
        UsageError: If it is no checkpoint, or holds objects and is not ``trusted``.
    """
    _check_file(path)
    content = _load(path, trusted)
    _check_content(path, content)
    return content  # type: ignore[no-any-return]


def _check_file(path: Path) -> None:
    name = str(path)
    if path.is_dir():
        if (path / "meta.pt").is_file():
            raise UsageError(
                f"{_EXPECTED}, got a folder of shards at {name!r}. Make one file of it, and "
                f"measure that: {_CONSOLIDATE} {name}"
            )
        raise UsageError(f"{_EXPECTED}, got a folder at {name!r}. Name a file in it.")
    if not path.is_file():
        got = "a device or a pipe" if path.exists() else "nothing"
        raise UsageError(f"{_EXPECTED}, got {got} at {name!r}.")
    try:
        with open(path, "rb") as file:
            start = file.read(4)
    except OSError as error:
        raise UsageError(f"{_EXPECTED}, got {name!r}: {error.strerror}.") from error
    if start == b"" or (start == b"PK\x03\x04" and not zipfile.is_zipfile(path)):
        how = "empty" if start == b"" else "cut off"
        raise UsageError(
            f"{_EXPECTED}, got {name!r}, which is {how}: writing or copying it was interrupted. "
            "Copy it again, or take an earlier one."
        )
    if not zipfile.is_zipfile(path):
        raise UsageError(f"{_EXPECTED}, got {name!r}, which is something else or broken.")


def _load(path: Path, trusted: bool) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=not trusted, mmap=True)
    except Exception as error:
        if trusted and not isinstance(error, RuntimeError | EOFError | pickle.UnpicklingError):
            raise  # of the objects' own code
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found and isinstance(error, pickle.UnpicklingError):
            raise UsageError(
                f"measure: expected CHECKPOINT to hold tensors and plain data only, got "
                f"{found[1]} in {str(path)!r}. Reading such objects can run any code: if you trust "
                "where the file comes from, add --trust_checkpoint true. A hyperparameter is left "
                "out of checkpoints by self.save_hyperparameters(ignore=[NAME])."
            ) from error
        reason = (
            str(error).rpartition("WeightsUnpickler error: ")[2].strip().partition("\n")[0][:150]
        )
        raise UsageError(
            f"{_EXPECTED}, got {str(path)!r}, which is broken, or in another form ({reason}). "
            f"Copy it again. {_SAVE_ANEW}"
        ) from error


def _check_content(path: Path, content: Any) -> None:
    got = f"{_EXPECTED}, got {str(path)!r}, which"
    if not isinstance(content, dict):
        raise UsageError(f"{got} has no `state_dict`, but is a {_kind(content)}. {_SAVE_ANEW}")
    if "state_dict" not in content:
        weights = any(isinstance(value, torch.Tensor) for value in content.values())
        hint = (
            "Weights alone are measured in Python, by measure_geometry." if weights else _SAVE_ANEW
        )
        raise UsageError(f"{got} has no `state_dict`. {hint}")
    for key in ("state_dict", *_HYPERPARAMETERS):
        value = content.get(key, {})
        if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
            raise UsageError(
                f"{got} has a {_kind(value)} for `{key}` in place of a dict of names. {_SAVE_ANEW}"
            )
    for key in _NAMES_OF_ONE_ARGUMENT:
        if not isinstance(content.get(key), str | None):
            raise UsageError(f"{got} has a {_kind(content[key])} for `{key}`. {_SAVE_ANEW}")
    version = content.get(_VERSION_KEY)
    if not isinstance(version, str) or not _VERSION.fullmatch(version):
        found = "no" if version is None else f"{version!r} as"
        raise UsageError(f"{got} has {found} `{_VERSION_KEY}`. {_SAVE_ANEW}")


def _kind(value: Any) -> str:
    return type(value).__name__
