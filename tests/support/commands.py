"""Check a shell command of a page without doing what it says: what it names is there and parses."""

import argparse
import contextlib
import io
import re
import runpy
import shlex
import sys
import tomllib
from functools import cache

from packaging.requirements import Requirement
from support.documents import ROOT

MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
READERS_SCRIPT = "train.py"  # what pages call a script of the reader's own
HAS_PARSER = re.compile(r"ArgumentParser|from command_line import")


class UnknownCommand(Exception):
    """A command that is not there, or that these checks know nothing of."""


class _Read(BaseException):
    """A command line was read without an error."""


def check(command, monkeypatch):
    """Raise unless a command can be given; ``A && B`` is two."""
    for part in re.split(r"\s+&&\s+", command):
        program, *args = _without_variables(shlex.split(part, comments=True))
        if program not in CHECKS:
            raise UnknownCommand(f"expected one of {', '.join(CHECKS)}, got {part!r}")
        with contextlib.redirect_stderr(io.StringIO()) as said:
            try:
                CHECKS[program](args, monkeypatch)
            except SystemExit as error:  # of a parser
                if error.code not in (0, None):
                    raise UnknownCommand(f"{part}: {said.getvalue() or error.code}") from error


def is_quick(command):
    """Whether no recipe or benchmark has to be imported for it."""
    return not re.search(r"\b(?:python|torchrun|ARGS|lightning-linf measure)\b", command)


def _without_variables(words):
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


def _make(args, monkeypatch):
    variables = dict(arg.split("=", 1) for arg in args if "=" in arg)
    for name in variables:
        if f"$({name})" not in MAKEFILE:
            raise UnknownCommand(f"make: the Makefile has no variable {name}")
    for target in (arg for arg in args if "=" not in arg):
        rule = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", MAKEFILE, re.MULTILINE)
        if rule is None:
            raise UnknownCommand(f"make: the Makefile has no target {target}")
        script = re.search(r"python (\w+/\w+\.py) \$\(ARGS\)", rule[1])
        if script is not None and "ARGS" in variables:
            _python([script[1], *shlex.split(variables["ARGS"])], monkeypatch)


def _python(args, monkeypatch):
    if args[:2] == ["-m", "pip"]:
        return _pip(args[2:], monkeypatch)
    script, *args = args
    if script == READERS_SCRIPT:
        return None
    if not (ROOT / script).is_file():
        raise UnknownCommand(f"python: there is no {script}; a reader's own is {READERS_SCRIPT}")
    source = (ROOT / script).read_text(encoding="utf-8")
    if HAS_PARSER.search(source) is None:
        compile(source, script, "exec")
        if args:
            raise UnknownCommand(f"{script} takes no arguments, got {args}")
        return None
    return _read_by_script(script, args, monkeypatch)


def _read_by_script(script, args, monkeypatch):
    """Start a script, and stop it once its parser has read the arguments."""
    import jsonargparse

    known = set(sys.modules)
    with monkeypatch.context() as patch:
        for parser in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            patch.setattr(parser, "parse_args", _stop_after(parser.parse_args))
        patch.setattr(sys, "argv", [script, *args])
        patch.syspath_prepend(str((ROOT / script).parent))
        patch.chdir(ROOT)
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                runpy.run_path(script, run_name="__main__")
        except _Read:
            return
        finally:
            # recipes/ and benchmarks/ have modules of the same names.
            for name in set(sys.modules) - known:
                file = getattr(sys.modules[name], "__file__", None) or ""
                if file.startswith((f"{ROOT}/recipes/", f"{ROOT}/benchmarks/", f"{ROOT}/docs/")):
                    del sys.modules[name]
    raise UnknownCommand(f"{script} reads no arguments")


def _stop_after(parse_args):
    depth = 0

    def stopping(self, *args, **options):
        nonlocal depth
        depth += 1
        try:
            parse_args(self, *args, **options)
        finally:
            depth -= 1
        if not depth:
            raise _Read

    return stopping


def _torchrun(args, monkeypatch):
    from torch.distributed.run import get_args_parser

    chosen = get_args_parser().parse_args(args)
    _python([chosen.training_script, *chosen.training_script_args], monkeypatch)


def _lightning_linf(args, monkeypatch):
    command, *args = args
    if command == "report":
        from lightning_linf.cli.report import make_parser

        make_parser().parse_args(args)
    elif command == "measure":
        from lightning_linf.cli.arguments import parse
        from lightning_linf.cli.measure import make_parser as make_measure_parser

        parse(make_measure_parser(), args)
    else:
        raise UnknownCommand(f"lightning-linf has no command {command}")


@cache
def _dependencies():
    extras = PROJECT["optional-dependencies"]
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    return {Requirement(line).name for line in lines}


def _pip(args, monkeypatch):
    parser = argparse.ArgumentParser("pip")
    parser.add_argument("command", choices=["install"])
    parser.add_argument("--upgrade", "-U", action="store_true")
    parser.add_argument("--editable", "-e", action="append", default=[])
    parser.add_argument("--constraint", "-c", action="append", default=[])
    parser.add_argument("--index-url")
    parser.add_argument("packages", nargs="*")
    chosen = parser.parse_args(args)
    for file in chosen.constraint:
        if not (ROOT / file).is_file():
            raise UnknownCommand(f"pip: there is no file {file}")
    for package in [*chosen.packages, *chosen.editable]:
        name = package.replace(".", PROJECT["name"], 1) if package.startswith(".") else package
        requirement = Requirement(name)
        if requirement.name == PROJECT["name"]:
            unknown = requirement.extras - {*PROJECT["optional-dependencies"]}
            if unknown:
                raise UnknownCommand(f"pip: the package has no extra {', '.join(unknown)}")
        elif requirement.name not in _dependencies():
            raise UnknownCommand(f"pip: {requirement.name} is in no extra of the package")


def _tensorboard(args, monkeypatch):
    parser = argparse.ArgumentParser("tensorboard")
    parser.add_argument("--logdir", required=True)
    parser.add_argument("--port", type=int)
    parser.parse_args(args)


def _git(args, monkeypatch):
    if args[:1] != ["clone"]:
        raise UnknownCommand(f"expected git clone, got git {' '.join(args)}")


CHECKS = {
    "cd": lambda args, monkeypatch: None,
    "git": _git,
    "lightning-linf": _lightning_linf,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "tensorboard": _tensorboard,
    "torchrun": _torchrun,
    ".ci/run": lambda args, monkeypatch: None,
}
