"""Dataclasses to plain JSON types and back; whatever does not fit is refused with its place."""

from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from lightning_linf import json_numbers

Scalar = str | int | float | bool | None
_REMEDY = "Pass what to_dict, to_json or save made."
_UPDATE = "If a later version of lightning_linf wrote it, update."


def encode(value: Any) -> Any:
    """Turn dataclasses into dicts, and inf and NaN into strings, at any depth."""
    if is_dataclass(value) and not isinstance(value, type):
        hints = get_type_hints(type(value))
        return {
            field.name: (
                {key: _encode_scalar(entry) for key, entry in getattr(value, field.name).items()}
                if hints[field.name] == dict[str, Scalar]
                else encode(getattr(value, field.name))
            )
            for field in fields(value)
        }
    if isinstance(value, dict):
        return {key: encode(entry) for key, entry in value.items()}
    return json_numbers.encode(value) if isinstance(value, float) else value


def _encode_scalar(value: Scalar) -> Any:
    # In a dict that may hold strings, too, "NaN" could be the word or the number.
    return {"float": encode(value)} if encode(value) is not value else value


def decode(kind: Any, value: Any, where: str) -> Any:
    """Undo :func:`encode` for an annotated type, checking everything on the way.

    Args:
        kind: float, int, str, a dataclass of such, ``dict[str, kind]``, ``kind | None`` or Scalar.
        value: What a JSON parser made of it.
        where: The path to it, for messages, such as "GeometryReport.noise.trace".

    Raises:
        ValueError: If ``value`` has another type, or a dataclass lacks keys that have no default,
            or has unknown ones.
    """
    if kind == Scalar:
        if isinstance(value, dict) and set(value) == {"float"}:
            return decode(float, value["float"], where)
        expected, fits = "a string, a number, true, false or null", isinstance(value, Scalar)
    elif type(None) in get_args(kind):
        (inner,) = (other for other in get_args(kind) if other is not type(None))
        return None if value is None else decode(inner, value, where)
    elif is_dataclass(kind):
        return _decode_fields(kind, value, where)
    elif get_origin(kind) is dict:
        inner = get_args(kind)[1]
        if isinstance(value, dict):
            return {key: decode(inner, entry, f"{where}.{key}") for key, entry in value.items()}
        expected, fits = "an object", False
    elif kind is float:
        if isinstance(value, str) and value in json_numbers.NON_FINITE:
            return json_numbers.NON_FINITE[value]
        expected = "a number"  # whole ones too: other languages write 1.0 as 1
        fits = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        expected = {int: "a whole number", str: "a string"}[kind]
        fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits:
        raise ValueError(f"{_place(where)} to be {expected}, got {value!r}. {_REMEDY}")
    return value


def _decode_fields(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{_place(where)} to be an object, got {value!r}. {_REMEDY}")
    hints = get_type_hints(kind)
    required = [field.name for field in fields(kind) if field.default is MISSING]
    missing, unknown = (
        [key for key in required if key not in value],
        sorted(set(value) - set(hints)),
    )
    if missing or unknown:
        raise ValueError(
            f"{_place(where)} to have the keys of {kind.__name__}, got {missing} missing and "
            f"{unknown} unknown. {_UPDATE if unknown else _REMEDY}"
        )
    return kind(**{key: decode(hints[key], value[key], f"{where}.{key}") for key in value})


def _place(where: str) -> str:
    name, _, rest = where.partition(".")
    return f"{name}: expected " + (f"`{rest}`" if rest else "its data")
