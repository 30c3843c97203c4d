"""A user's classes by path, and their instances as a checkpoint holds them."""

import inspect
import pickle
import re
import zipfile
from argparse import ArgumentError
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_linf.cli.arguments import ClassArguments
from lightning_linf.cli.errors import UsageError

PartT = TypeVar("PartT", LightningModule, LightningDataModule)


def find_class(flag: str, class_path: str, base: type[PartT]) -> type[PartT]:
    """Import the class that ``flag`` names.

    Raises:
        UsageError: If there is none of that name, or it is no subclass of ``base``.
    """
    module_path, _, name = class_path.rpartition(".")
    expected = f"measure: expected {flag} to be the path of a {base.__name__}, as in package.Class"
    try:
        module = import_module(module_path) if module_path else None
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_path}.".startswith(f"{error.name}."):
            raise  # something that the user's module imports
        raise UsageError(
            f"{expected}, got {class_path!r}, and there is no module {error.name!r} in this folder "
            "or on PYTHONPATH. Set PYTHONPATH to the folder that holds it."
        ) from error
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        raise UsageError(f"{expected}, got {class_path!r}, which names no class.")
    if not issubclass(cls, base):
        raise UsageError(
            f"{expected}, got {class_path!r}, which does not derive from {base.__module__}."
            f"{base.__name__}. Import Lightning as `lightning`, not as `pytorch_lightning`."
        )
    return cls


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint file that has been looked into."""

    path: Path
    content: dict[str, Any]
    trusted: bool  # to hold more than tensors and plain data

    @classmethod
    def open(cls, path: Path, trusted: bool) -> "Checkpoint":
        """Read a file.

        Raises:
            UsageError: If it is no checkpoint, or holds objects and is not ``trusted``.
        """
        expected = "measure: expected CHECKPOINT to be a file that Lightning has saved"
        if not path.is_file():
            got = "a folder" if path.is_dir() else "nothing"
            hint = (
                " Make one of it: python -m lightning.pytorch.utilities.consolidate_checkpoint"
                if path.is_dir()
                else ""
            )
            raise UsageError(f"{expected}, got {got} at {str(path)!r}.{hint}")
        if not zipfile.is_zipfile(path):
            raise UsageError(f"{expected}, got {str(path)!r}, which is something else or broken.")
        try:
            content = torch.load(path, map_location="cpu", weights_only=not trusted, mmap=True)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            raise UsageError(
                f"measure: expected CHECKPOINT to hold tensors and plain data only, got "
                f"{found[1] if found else 'other objects'} in {str(path)!r}. Reading such objects "
                "can run any code: if you trust where the file comes from, add "
                "--trust_checkpoint true."
            ) from error
        except (RuntimeError, EOFError) as error:
            raise UsageError(f"{expected}, got {str(path)!r}, which is broken: {error}") from error
        if not isinstance(content, dict) or "state_dict" not in content:
            raise UsageError(f"{expected}, got {str(path)!r}, which has no `state_dict`.")
        return cls(path, content, trusted)

    @property
    def global_step(self) -> int | None:
        """Optimizer steps behind the weights."""
        return self.content.get("global_step")

    def load(self, cls: type[PartT], arguments: ClassArguments) -> PartT:
        """Make an instance with the saved constructor arguments, those in ``arguments`` replaced.

        A module gets the saved weights, on the CPU.

        Raises:
            UsageError: If constructor arguments are missing or wrong, or the weights do not fit.
        """
        saved = self._saved_arguments(cls)
        given = arguments.parse(cls, instantiate="_instantiator" not in saved)
        _refuse_missing(cls, arguments.key, saved.keys() | given.keys())
        options: dict[str, Any] = {"map_location": "cpu"}
        if (
            self.trusted
            and "weights_only" in inspect.signature(cls.load_from_checkpoint).parameters
        ):
            options["weights_only"] = False  # lightning 2.5 has no such argument, and never checks
        try:
            return cls.load_from_checkpoint(self.path, **options, **given)
        except ArgumentError as error:  # of LightningCLI's way to make an instance
            raise UsageError(f"measure: --{arguments.key} {cls.__name__}: {error}") from error
        except RuntimeError as error:
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            raise UsageError(
                f"measure: expected the weights of {str(self.path)!r} to fit {cls.__name__}, got: "
                f"{_shortened(error)} Give the arguments of that run, as in --model.ARG VALUE."
            ) from error
        except ValueError as error:
            if "arbitrary code execution" not in str(error):
                raise
            raise UsageError(f"measure: {error}") from error

    def _saved_arguments(
        self, cls: type[LightningModule] | type[LightningDataModule]
    ) -> dict[str, Any]:
        saved = dict(self.content.get(cls.CHECKPOINT_HYPER_PARAMS_KEY) or {})
        name = self.content.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)  # of one argument that holds all
        return {str(name): saved} if name in inspect.signature(cls.__init__).parameters else saved


def _refuse_missing(cls: type[PartT], key: str, known: set[str]) -> None:
    _, *parameters = inspect.signature(cls.__init__).parameters.values()
    missing = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in known
    ]
    if missing:
        raise UsageError(
            f"measure: expected all arguments that {cls.__name__} needs, got none in the "
            f"checkpoint for {', '.join(missing)}. Give them as --{key}.{missing[0]} VALUE or "
            f"under `{key}:` in --config FILE.yaml; to have them saved, call "
            f"self.save_hyperparameters() in {cls.__name__}.__init__ and train again."
        )


def _shortened(error: RuntimeError, most: int = 300) -> str:
    text = " ".join(str(error).partition(":\n")[2].split())
    return text if len(text) <= most else f"{text[:most]} ..."
