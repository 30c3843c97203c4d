"""No public name, argument, tag or flag of the last release has gone (docs/releases.md).

python tests/suite/test_kept_names.py    # at a release: note those of this version
"""

import ast
import inspect
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

import lightning_linf
from lightning_linf import quantities
from lightning_linf.partition_names import PartitionName

NOTED = Path(__file__).with_name("kept_names.txt")
ROOMS = (
    *("callbacks", "functional", "metrics", "optim", "partition", "probe", "record", "recorder"),
    *("reparam", "report", "swap"),
)


def exported():
    """Every name that the package and its rooms export, and what it stands for."""
    yield from (
        (f"lightning_linf.{name}", getattr(lightning_linf, name)) for name in lightning_linf.__all__
    )
    for room in ROOMS:
        module = import_module(f"lightning_linf.{room}")
        for statement in ast.parse(inspect.getsource(module)).body:
            for alias in statement.names if isinstance(statement, ast.ImportFrom) else ():
                if alias.asname == alias.name:
                    yield f"{module.__name__}.{alias.name}", getattr(module, alias.name)


def arguments(value):
    """Names of the arguments of a function or a class; none of what is neither."""
    try:
        return list(inspect.signature(value).parameters) if callable(value) else []
    except ValueError:  # of built-in types
        return []


def names():
    """One line for each name, argument and tag."""
    for name, value in exported():
        yield name
        yield from (f"{name}({argument})" for argument in arguments(value))
    for quantity in vars(quantities).values():
        if isinstance(quantity, quantities.PartitionScalar):
            yield from (quantity.of(partition) for partition in get_args(PartitionName))
        elif isinstance(quantity, quantities.Scalar):
            yield quantity.tag
        if isinstance(quantity, quantities.Column):
            yield from (f"{monitor.record_tag}: {quantity.name}" for monitor in quantity.monitors)


def flags():
    """One line for each option of the command line."""
    from lightning_linf.cli import measure, report

    for command in (measure, report):
        for action in command.make_parser()._actions:
            yield from (
                f"lightning-linf {command.__name__.rpartition('.')[2]} {flag}"
                for flag in action.option_strings
            )


def noted(of_commands):
    lines = NOTED.read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line.startswith("lightning-linf ") == of_commands}


def test_every_name_argument_and_tag_of_the_last_release_is_there():
    assert sorted(noted(of_commands=False) - set(names())) == []


def test_every_flag_of_the_last_release_is_there():
    pytest.importorskip("jsonargparse")
    assert sorted(noted(of_commands=True) - set(flags())) == []


if __name__ == "__main__":
    NOTED.write_text("\n".join(sorted({*names(), *flags()})) + "\n", encoding="utf-8")
