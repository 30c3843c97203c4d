"""Import a user's classes by their paths, and make their instances from a checkpoint."""

import inspect
import sys
import traceback
from argparse import ArgumentError
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_linf.cli.arguments import ClassArguments
from lightning_linf.cli.content import read_content
from lightning_linf.cli.errors import UsageError
from lightning_linf.lightning_packages import either

PartT = TypeVar("PartT", LightningModule, LightningDataModule)
_LIGHTNINGS = ("lightning", "pytorch_lightning")
_LIBRARIES = {*_LIGHTNINGS, "lightning_linf", "lightning_utilities", "torch", "jsonargparse"}
# A checkpoint can name a function that makes its module; older versions of Lightning call any.
_INSTANTIATORS = (
    "lightning.pytorch.cli.instantiate_module",
    "pytorch_lightning.cli.instantiate_module",
)


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
    if not issubclass(cls, either(base)):
        raise UsageError(
            f"{expected}, got {class_path!r}, which does not derive from {base.__module__}."
            f"{base.__name__} or that of pytorch_lightning."
        )
    return cls


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint file."""

    path: Path
    content: dict[str, Any]
    trusted: bool  # whether it may hold more than tensors and plain data

    @classmethod
    def open(cls, path: Path, trusted: bool) -> "Checkpoint":
        """Read a file.

        Raises:
            UsageError: If it is no checkpoint, or holds objects and is not ``trusted``.
        """
        return cls(path, read_content(path, trusted), trusted)

    @property
    def global_step(self) -> int | None:
        """Optimizer steps behind the weights."""
        step = self.content.get("global_step")
        return step if isinstance(step, int) else None

    def load(self, cls: type[PartT], arguments: ClassArguments) -> PartT:
        """Make an instance with the saved constructor arguments, those in ``arguments`` replaced.

        A module gets the saved weights, on the CPU.

        Raises:
            UsageError: If constructor arguments are missing or wrong, or the weights do not fit.
        """
        saved = self._saved_arguments(cls)
        if (maker := saved.get("_instantiator")) not in (None, *_INSTANTIATORS):
            raise UsageError(
                f"measure: expected no instantiator but LightningCLI's in {str(self.path)!r}, got "
                f"{maker!r}, which could run any code. Take a checkpoint from another source."
            )
        given = arguments.parse(cls, instantiate="_instantiator" not in saved)
        _refuse_missing(cls, arguments.key, saved.keys() | given.keys())
        source: Path | BytesIO = self.path
        options: dict[str, Any] = {"map_location": "cpu"}
        if "weights_only" in inspect.signature(cls.load_from_checkpoint).parameters:
            options["weights_only"] = not self.trusted
        elif not self.trusted:  # lightning 2.5 would read the file without any restriction
            source = self._copy()
        try:
            return cls.load_from_checkpoint(source, **options, **given)
        except ArgumentError as error:  # of LightningCLI's way to make an instance
            raise UsageError(f"measure: --{arguments.key} {cls.__name__}: {error}") from error
        except Exception as error:
            head, _, rest = str(error).partition(":\n")
            if isinstance(error, RuntimeError) and head.startswith("Error(s) in loading state_d"):
                raise UsageError(
                    f"measure: expected the weights of {str(self.path)!r} to fit {cls.__name__}, "
                    f"got: {_shortened(rest)} Give the arguments of that run, as in --model.ARG "
                    "VALUE."
                ) from error
            if _is_of_users(error):
                raise
            raise UsageError(
                f"measure: expected Lightning to make {cls.__name__} out of {str(self.path)!r}, "
                f"got {type(error).__name__}: {_shortened(str(error)).rstrip('.')}. Save it anew "
                "with trainer.save_checkpoint."
            ) from error

    def _copy(self) -> BytesIO:
        """Write what was read safely into memory, from where it can be read without restriction."""
        buffer = BytesIO()
        torch.save(self.content, buffer)
        buffer.seek(0)
        return buffer

    def _saved_arguments(
        self, cls: type[LightningModule] | type[LightningDataModule]
    ) -> dict[str, Any]:
        saved = dict(self.content.get(cls.CHECKPOINT_HYPER_PARAMS_KEY, {}))
        name = self.content.get(cls.CHECKPOINT_HYPER_PARAMS_NAME)  # if one argument holds all
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


def _is_of_users(error: Exception) -> bool:
    """Say whether the error came through the user's code."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    modules = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame in frames}
    return bool(modules - _LIBRARIES - sys.stdlib_module_names)


def _shortened(text: str, most: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]} ..."
