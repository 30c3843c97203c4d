"""The command line of a recipe: flags win over a YAML file, and that over a preset."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser, Namespace, set_parsing_settings

from settings import RecipeError, Settings

_PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class NoOptions:
    """No settings."""


SettingsT = TypeVar("SettingsT", bound=Settings)


def find_presets(
    recipe: str, kind: type[SettingsT], default: str
) -> dict[str, Callable[[], SettingsT]]:
    """List the presets of a recipe, the files ``presets/RECIPE/NAME.yaml``, by name.

    Args:
        recipe: Name of their folder.
        kind: The recipe's dataclass of settings; a preset keeps its defaults where it says nothing.
        default: The preset that comes first, which is taken when none is named.
    """
    files = {file.stem: file for file in sorted((_PRESETS / recipe).glob("*.yaml"))}
    names = sorted(files, key=lambda name: name != default)
    return {name: partial(_load_preset, files[name], kind) for name in names}


def _load_preset(file: Path, kind: type[SettingsT]) -> SettingsT:
    try:
        return kind(**yaml.safe_load(file.read_text(encoding="utf-8")))
    except (yaml.YAMLError, TypeError) as error:
        raise RecipeError(
            f"preset: expected settings of {kind.__name__} in {str(file)!r}, got {error}. "
            "Correct the file."
        ) from error


def parse(
    presets: Mapping[str, Callable[[], SettingsT]],
    args: Sequence[str],
    about: str,
    command: str = "%(prog)s",
    options: type[Any] = NoOptions,
) -> tuple[SettingsT, Any]:
    """Read a command line whose flags are the fields of one or two dataclasses.

    Args:
        presets: Named sets of settings, the default first; all return the same dataclass.
        args: The command line without the program and its command. Names of flags may have dashes
            for underscores.
        about: First line of the help.
        command: What the help shows before the flags.
        options: A second dataclass, which presets do not change.

    Returns:
        The filled dataclasses.
    """
    args = [_with_underscores(arg) for arg in args]
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        usage=f"{command} [--preset NAME] [--config FILE.yaml] [--FIELD VALUE ...]",
        description=about,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="config", help="YAML file of fields (and of a preset).")
    default = next(iter(presets))
    about_presets = f"Where the defaults of the other flags come from: {', '.join(presets)}."
    parser.add_argument("--preset", default=default, help=about_presets)
    kind = type(presets[default]())
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
    preset = str(known.preset or _preset_in_files(known.config) or default)
    if preset not in presets:
        parser.error(f"preset: expected one of {', '.join(presets)}, got {preset!r}. Choose one.")
    parser.set_defaults(asdict(presets[preset]()))
    chosen = parser.parse_args([*(f"--config={file}" for file in known.config), *flags])
    try:
        return _filled(kind, chosen), _filled(options, chosen)
    except RecipeError as error:
        parser.error(str(error))


def _filled(kind: type[SettingsT], chosen: Namespace) -> SettingsT:
    return kind(**{field.name: chosen[field.name] for field in fields(kind)})


def _with_underscores(arg: str) -> str:
    """Change dashes in the name of a flag, not in its value."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def _preset_in_files(files: Sequence[str]) -> Any:
    """Find the preset that the last file names, if any does."""
    preset = None
    for file in files:
        try:
            settings = yaml.safe_load(Path(file).read_text())
        except (OSError, yaml.YAMLError):
            continue  # the parser reads it again and says what is wrong
        if isinstance(settings, dict):
            preset = settings.get("preset", preset)
    return preset
