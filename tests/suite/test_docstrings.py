"""What docstrings refer to exists, and is what they say: a function, a class or a method."""

import ast
import inspect
import pkgutil
import re
from importlib import import_module
from types import ModuleType

import pytest
import torch

import lightning_linf

ROLE = re.compile(r":([a-z]+):`([^`]*)`")
IS_OF_KIND = {
    "func": lambda value: callable(value) and not isinstance(value, type),
    "class": lambda value: isinstance(value, type),
    "meth": inspect.isroutine,
    "data": lambda value: not callable(value) and not isinstance(value, ModuleType),
    "mod": lambda value: isinstance(value, ModuleType),
}
MODULES = ["lightning_linf"] + [
    module.name for module in pkgutil.walk_packages(lightning_linf.__path__, "lightning_linf.")
]


def references(source):
    """Yield (role, target, names of the classes around it) of every docstring."""

    def visit(node, classes):
        if isinstance(node, ast.ClassDef):
            classes = (*classes, node.name)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            for role, target in ROLE.findall(str(node.value.value)):
                if role != "math":
                    yield role, target, classes
        for child in ast.iter_child_nodes(node):
            yield from visit(child, classes)

    yield from visit(ast.parse(source), ())


def from_full_path(path):
    """Import the longest module at the start of a dotted path, but for its last name."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        try:
            value = import_module(".".join(parts[:length]))
        except ImportError:
            continue
        for part in parts[length:]:
            value = getattr(value, part)
        return value
    raise AttributeError(path)


def resolve(target, module, classes):
    """Find what a reader would: by its full path, or in the class, the module or its package."""
    path = target.removeprefix("~")
    packages = [module.rpartition(".")[0], "lightning_linf"]
    homes = [".".join([module, *classes[:n]]) for n in range(len(classes), -1, -1)]
    for prefix in ["", *homes, *packages]:
        try:
            return from_full_path(f"{prefix}.{path}" if prefix else path)
        except AttributeError:
            continue
    raise AttributeError(f"{module}: a docstring refers to {target}, which is not found")


@pytest.mark.parametrize("module", MODULES)
def test_references_of_docstrings_exist_and_are_of_their_kind(module):
    try:
        source = inspect.getsource(import_module(module))
    except ModuleNotFoundError as error:
        if error.name not in ("jsonargparse", "matplotlib", "transformers", "triton", "yaml"):
            raise
        pytest.skip(f"needs {error.name}, which an extra installs")
    for role, target, classes in references(source):
        if target.endswith("torch.optim.Muon") and not hasattr(torch.optim, "Muon"):
            continue  # which torch has from 2.9 on
        if role == "mod":
            import_module(target.removeprefix("~"))
            continue
        assert IS_OF_KIND[role](resolve(target, module, classes)), f"{target} is no {role}"


def test_wrong_references_are_found():
    source = 'class A:\n    def f(self):\n        """See :meth:`g` and :math:`x`."""'
    assert list(references(source)) == [("meth", "g", ("A",))]
    with pytest.raises(AttributeError, match="refers to g, which is not found"):
        resolve("g", "lightning_linf.errors", ("ProbeError",))
    module = import_module("lightning_linf.functional.noise")
    assert not IS_OF_KIND["func"](module)
    assert IS_OF_KIND["func"](resolve("noise", "lightning_linf.functional", ()))
