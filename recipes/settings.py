"""A recipe's choices: flags over YAML over preset, and the checkpoint to go on from."""

import argparse
import os
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Protocol, TypeVar, get_args, get_origin

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings


class RecipeError(ValueError):
    """Something that the user can put right; the command line shows it as one line."""


class RunConfig(Protocol):
    """What this module reads of a recipe's frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Folder of the run under ``runs_dir``."""

    @property
    def runs_dir(self) -> str:
        """Folder of all runs."""

    @property
    def resume(self) -> str | None:
        """Checkpoint, or `last`."""

    @property
    def max_steps(self) -> int:
        """Optimizer steps."""


class Choices(Protocol):
    """A frozen dataclass of choices."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


@dataclass(frozen=True)
class NoOptions:
    """No choices."""


ChoicesT = TypeVar("ChoicesT", bound=Choices)
OptionsT = TypeVar("OptionsT", bound=Choices)


def refuse(name: str, expected: str, got: object, remedy: str) -> NoReturn:
    """Raise a `RecipeError` about the choice ``name``."""
    raise RecipeError(f"{name}: expected {expected}, got {got!r}. {remedy}")


def refuse_unless(config: Choices, rules: Iterable[tuple[str, bool, str, str]]) -> None:
    """Refuse the first choice that breaks a rule (its name, whether it holds, expected, remedy)."""
    for name, is_right, expected, remedy in rules:
        if not is_right:
            refuse(name, expected, getattr(config, name), remedy)


def check_fields(config: Choices, may_be_zero: set[str]) -> None:
    """Refuse integers below 1, but of the fields in ``may_be_zero``, and names that are no choice.

    The command line refuses such names, too; code and checkpoints come here alone.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is int and field.name not in may_be_zero and value < 1:
            refuse(field.name, "at least 1", value, "Give a positive number.")
        # X or X | None
        literals = [x for x in (field.type, *get_args(field.type)) if get_origin(x) is Literal]
        names = [name for literal in literals for name in get_args(literal)]
        if names and value not in (names if field.type in literals else [*names, None]):
            refuse(field.name, f"one of {', '.join(names)}", value, "Choose one of them.")


def parse(
    presets: Mapping[str, Callable[[], ChoicesT]],
    args: Sequence[str],
    about: str,
    command: str = "%(prog)s",
) -> ChoicesT:
    """Read the command line of a recipe.

    Args:
        presets: Named sets of choices, the default first; all return the same dataclass.
        args: The command line without the program and its command. Names of flags may have dashes
            for underscores.
        about: First line of the help.
        command: What the help shows before the flags.
    """
    return parse_two(presets, NoOptions, args, about, command)[0]


def parse_two(
    presets: Mapping[str, Callable[[], ChoicesT]],
    options: type[OptionsT],
    args: Sequence[str],
    about: str,
    command: str = "%(prog)s",
) -> tuple[ChoicesT, OptionsT]:
    """Read a command line whose flags are the fields of two dataclasses.

    Args:
        presets: As of :func:`parse`.
        options: The second dataclass, which presets do not change.
        args: As of :func:`parse`, and so are the following.
        about: First line of the help.
        command: What the help shows before the flags.
    """
    args = [_with_underscores(arg) for arg in args]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        usage=f"{command} [--preset NAME] [--config FILE.yaml] [--FIELD VALUE ...]",
        description=about,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of fields (and of a preset).")
    parser.add_argument(
        "--preset",
        type=Literal[tuple(presets)],
        default=next(iter(presets)),
        help="Where the other defaults come from.",
    )
    kind = type(next(iter(presets.values()))())
    parser.add_class_arguments(kind)
    if fields(options):
        parser.add_class_arguments(options)
    # The preset sets the defaults, so it must be known before the rest is read. And files go first,
    # because the parser lets the later of two settings win.
    ahead = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    ahead.add_argument("--preset")
    ahead.add_argument("--config", action="append", default=[])
    try:
        known, flags = ahead.parse_known_args(args)
    except argparse.ArgumentError as error:
        parser.error(str(error))
    if known.preset is not None:
        flags = [f"--preset={known.preset}", *flags]
    preset = str(known.preset or _preset_in_files(known.config) or next(iter(presets)))
    if preset in presets:  # else the parser names the choices
        parser.set_defaults(asdict(presets[preset]()))
    chosen = parser.parse_args([*(f"--config={file}" for file in known.config), *flags])
    try:
        return _filled(kind, chosen), _filled(options, chosen)
    except RecipeError as error:
        parser.error(str(error))


def _filled(kind: type[OptionsT], chosen: Namespace) -> OptionsT:
    return kind(**{field.name: chosen[field.name] for field in fields(kind)})


def find_checkpoint(config: RunConfig, may_change: set[str]) -> str | None:
    """Find the checkpoint that ``config.resume`` means, and refuse one whose run went otherwise.

    Lightning would restore, say, the old learning rate and drop the new one without a word.

    Args:
        config: The choices of this run.
        may_change: Fields that may differ from the run of the checkpoint.
    """
    if config.resume is None:
        return None
    path = Path(config.resume).expanduser()
    if config.resume == "last":
        found = Path(config.runs_dir, config.name).glob("version_*/checkpoints/last.ckpt")
        path = max(found, key=os.path.getmtime, default=path)
    if not path.is_file():
        refuse(
            "resume",
            f"a checkpoint, or 'last' with one under {Path(config.runs_dir, config.name)}",
            config.resume,
            "Check --resume, --runs_dir and --name, or leave --resume out to start afresh.",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        before = type(config)(**state["hyper_parameters"]["config"])
    except (RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise RecipeError(
            f"resume: expected a checkpoint of this recipe, got {str(path)!r} "
            f"({type(error).__name__}). Give a last.ckpt or best.ckpt that it wrote."
        ) from error
    for field in fields(config):
        old, new = getattr(before, field.name), getattr(config, field.name)
        if old != new and field.name not in may_change:
            refuse(field.name, f"{old!r} as in the run of {path}", new, "Repeat that run's flags.")
    if state["global_step"] >= config.max_steps:
        refuse(
            "resume",
            f"a run that has some of its {config.max_steps} steps left",
            str(path),
            "That run is complete; leave --resume out to train anew.",
        )
    return str(path)


def _with_underscores(arg: str) -> str:
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _preset_in_files(files: Sequence[str]) -> str | None:
    preset = None
    for file in files:
        try:
            settings = yaml.safe_load(Path(file).read_text())
        except (OSError, yaml.YAMLError):
            continue  # the parser reads it again and says what is wrong
        if isinstance(settings, dict):
            preset = settings.get("preset", preset)
    return preset
