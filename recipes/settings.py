"""Checks of a recipe's settings, and the error that tells the user which one to change."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, ClassVar, Literal, NoReturn, Protocol, get_args, get_origin


class RecipeError(ValueError):
    """An error that the user can put right; a recipe prints it as one line and no traceback."""


class Settings(Protocol):
    """Any frozen dataclass whose fields are settings."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def refuse(name: str, expected: str, got: object, remedy: str) -> NoReturn:
    """Raise a `RecipeError` about the setting ``name``."""
    raise RecipeError(f"{name}: expected {expected}, got {got!r}. {remedy}")


def refuse_unless(config: Settings, rules: Iterable[tuple[str, bool, str, str]]) -> None:
    """Refuse the first setting that breaks a rule.

    Args:
        config: The settings.
        rules: For each rule the name of its setting, whether the setting keeps the rule, what was
            expected, and what to do otherwise.
    """
    for name, is_kept, expected, remedy in rules:
        if not is_kept:
            refuse(name, expected, getattr(config, name), remedy)


def check_fields(config: Settings, may_be_zero: set[str]) -> None:
    """Refuse integers below 1 and values that a `Literal` does not list.

    The command line refuses values outside a `Literal` by itself. This check is for settings that
    come from code or from a checkpoint.

    Args:
        config: The settings.
        may_be_zero: Integer fields that are not checked.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is int and field.name not in may_be_zero and value < 1:
            refuse(field.name, "at least 1", value, "Give a positive number.")
        # The type of a field of names is Literal[...], or Literal[...] | None.
        literals = [x for x in (field.type, *get_args(field.type)) if get_origin(x) is Literal]
        names = [name for literal in literals for name in get_args(literal)]
        if names and value not in (names if field.type in literals else [*names, None]):
            refuse(field.name, f"one of {', '.join(names)}", value, "Choose one of them.")
