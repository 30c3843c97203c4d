"""Read the options of `measure` and the user's constructor arguments, from flags and YAML files."""

import re
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from lightning_linf.cli.errors import UsageError

CLASS_KEYS = ("model", "data")
# Sections of a LightningCLI's config.yaml that a measurement has no use for.
_LIGHTNING_CLI_KEYS = {"trainer", "seed_everything", "ckpt_path", "optimizer", "lr_scheduler"}


@dataclass(frozen=True)
class ClassArguments:
    """What was given for the constructor of --model or of --data; flags win over files."""

    key: str  # "model" or "data"
    from_files: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)  # --model.ARG=VALUE

    @property
    def names(self) -> set[str]:
        """Names of the constructor's arguments; that of ``--model.config.depth`` is "config"."""
        nested = (flag.removeprefix(f"--{self.key}.").partition("=")[0] for flag in self.flags)
        return {*self.from_files, *(name.split(".")[0].removesuffix("+") for name in nested)}

    def parse(self, cls: type, instantiate: bool) -> dict[str, Any]:
        """Check them against the types in the constructor of ``cls``.

        Args:
            cls: Whose arguments they are.
            instantiate: Make the objects that are given by `class_path`, or leave them plain data.

        Raises:
            UsageError: If one is unknown or has another type.
        """
        if not self.names:
            return {}
        parser = ArgumentParser(exit_on_error=False)
        keys = parser.add_class_arguments(cls, self.key, fail_untyped=False)
        others = {key.removeprefix(f"{self.key}.") for key in keys} - self.names
        # The others are left out: they may be required, and then come from the checkpoint.
        parser = ArgumentParser(exit_on_error=False, print_config=None)
        parser.add_argument("--config", action="config")
        parser.add_class_arguments(
            cls, self.key, fail_untyped=False, instantiate=False, skip={*others}
        )
        section = yaml.safe_dump({self.key: self.from_files})
        files = [f"--config={section}"] if self.from_files else []
        try:
            chosen = parser.parse_args([*files, *self.flags])
        except ArgumentError as error:
            raise UsageError(f"measure: --{self.key} {cls.__name__}: {error}") from error
        if instantiate:
            return dict(vars(parser.instantiate(chosen)[self.key]))
        return dict(chosen[self.key].as_dict())


def parse(
    parser: ArgumentParser, argv: Sequence[str]
) -> tuple[Namespace, dict[str, ClassArguments]]:
    """Read a command line: options of ``parser``, and what was given for each of ``CLASS_KEYS``.

    Flags win over files, and of files the later ones.

    Raises:
        UsageError: If something in it is wrong.
    """
    options, files, flags = _split(argv)
    merged: dict[str, Any] = {}
    classes = {key: ClassArguments(key, flags=flags[key]) for key in CLASS_KEYS}
    for content in map(_read_file, files):
        for key in CLASS_KEYS:
            path, arguments = _split_class(key, content.pop(key, None))
            classes[key].from_files.update(arguments)
            merged.update({key: path} if path else {})
        merged.update({k: v for k, v in content.items() if k not in _LIGHTNING_CLI_KEYS})
    ahead = [f"--config={yaml.safe_dump(merged)}"] if merged else []
    try:
        return parser.parse_args([*ahead, *options]), classes
    except ArgumentError as error:
        raise UsageError(f"measure: {error} (see --help)") from error


def _split(argv: Iterable[str]) -> tuple[list[str], list[str], dict[str, list[str]]]:
    options: list[str] = []
    files: list[str] = []
    flags: dict[str, list[str]] = {key: [] for key in CLASS_KEYS}
    tokens = iter(argv)
    for token in tokens:
        match = re.match(rf"--(?:config|({'|'.join(CLASS_KEYS)})\.[^=]+)(?==|$)", token)
        if match is None:
            options.append(token)
            continue
        name, equals, value = token.partition("=")
        if not equals:
            value = next(tokens, "--")
            if value.startswith("--"):
                raise UsageError(f"measure: expected a value after {name}, got none.")
        if match[1] is None:
            files.append(value)
        else:
            flags[match[1]].append(f"{name}={value}")
    return options, files, flags


def _read_file(file: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"measure: expected --config to be a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise UsageError(
            f"measure: expected --config to hold a mapping, got {type(content).__name__} in "
            f"{file!r}. Write lines such as `num_probes: 32`."
        )
    return content


def _split_class(key: str, section: Any) -> tuple[str | None, dict[str, Any]]:
    """Split ``CLASS``, ``{class_path: CLASS, init_args: {...}}`` or plain arguments."""
    if section is None or isinstance(section, str):
        return section, {}
    if not isinstance(section, dict) or not isinstance(section.get("init_args", {}), dict):
        raise UsageError(
            f"measure: expected `{key}` in --config to be a class path, or a mapping with "
            f"class_path and init_args, got {section!r}."
        )
    if section.keys() & {"class_path", "init_args", "dict_kwargs"}:
        arguments = {**section.get("init_args", {}), **section.get("dict_kwargs", {})}
        return section.get("class_path"), arguments
    return None, section
