"""Checks of arguments, whose errors all read alike."""

from collections.abc import Sequence
from numbers import Integral, Real


def check_whole(
    caller: str,
    name: str,
    value: object,
    least: int | None = None,
    remedy: str = "",
    *,
    or_none: bool = False,
) -> None:
    """Raise a ValueError unless it is a whole number, no smaller than ``least``.

    Args:
        caller: Public name that the message begins with.
        name: Name of the argument.
        value: What was given; True and 2.0 are not whole numbers.
        least: The smallest number that is allowed. None: any.
        remedy: Sentence that the message ends with.
        or_none: None is allowed, too.
    """
    if value is None and or_none:
        return
    least_of_all = ("" if least is None else f" >= {least}") + " or None" * or_none
    if isinstance(value, bool) or not isinstance(value, Integral):
        _refuse(caller, name, f" to be a whole number{least_of_all}", value, remedy)
    elif least is not None and value < least:
        _refuse(caller, name, least_of_all, value, remedy)


def check_positive(
    caller: str, name: str, value: object, remedy: str = "", *, or_none: bool = False
) -> None:
    """Raise a ValueError unless it is a number above zero, or None where that is allowed."""
    if value is None and or_none:
        return
    wanted = " > 0 or None" if or_none else " > 0"
    if isinstance(value, bool) or not isinstance(value, Real):
        _refuse(caller, name, f" to be a number{wanted}", value, remedy)
    elif not float(value) > 0:
        _refuse(caller, name, wanted, value, remedy)


def check_choice(
    caller: str,
    name: str,
    value: object,
    choices: Sequence[str],
    remedy: str = "",
    *,
    or_none: bool = False,
) -> None:
    """Raise a ValueError unless it is one of a few words, or None where that is allowed."""
    if not (isinstance(value, str) and value in choices) and not (value is None and or_none):
        wanted = ", ".join(map(repr, choices)) + " or None" * or_none
        _refuse(caller, name, f" to be one of {wanted}", value, remedy)


def check_words(
    caller: str, name: str, value: object, choices: Sequence[str], remedy: str = ""
) -> None:
    """Raise a ValueError unless it is a list of some of a few words."""
    words = value if isinstance(value, Sequence) and not isinstance(value, str) else (None,)
    if not all(word in choices for word in words):
        wanted = f" to be a list of names out of {', '.join(choices)}"
        _refuse(caller, name, wanted, value, remedy)


def check_callable(caller: str, name: str, value: object, remedy: str = "") -> None:
    """Raise a ValueError unless it can be called or is None."""
    if value is not None and not callable(value):
        _refuse(caller, name, " to be a function or None", value, remedy)


def _refuse(caller: str, name: str, wanted: str, value: object, remedy: str) -> None:
    raise ValueError(f"{caller}: expected `{name}`{wanted}, got {value!r}. {remedy}".rstrip())
