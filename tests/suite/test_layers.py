"""Imports point one way only, and what is packaged is what is there."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path

import pytest

import lightning_linf

ROOT = "lightning_linf"
PACKAGE = Path(lightning_linf.__file__).parent
SOURCE_TREE = PACKAGE.parent
needs_source_tree = pytest.mark.skipif(
    not (SOURCE_TREE / "pyproject.toml").is_file(),
    reason="tests the source tree, and an installed package is under test",
)

TENSORS_MAY = {"distributed", "errors", "functional", "kernels"}
SPLIT_MAY = {"argument_checks", "extras", "partition", "partition_names"}
PROBE_MAY = TENSORS_MAY | SPLIT_MAY | {"lightning_packages", "optim", "probe", "reparam", "report"}
SWAP_MAY = TENSORS_MAY | SPLIT_MAY | {"lightning_packages", "optim", "reparam", "swap"}
NAMES = {"json_numbers", "partition_names", "quantities", "quantity"}
SHOWN_MAY = NAMES | {"panels", "record", "report"}
# By layer, which layers of the package its modules may import.
LAYERS = {
    "": set(),  # __init__.py, which finds its names when they are used
    "argument_checks": set(),
    "errors": set(),
    "extras": set(),
    "json_numbers": set(),
    "lightning_packages": set(),
    "partition_names": set(),
    "quantity": set(),
    "quantities": {"quantity"},
    "kernels": {"kernels"},
    "functional": {"functional", "kernels"},
    "distributed": {"distributed", "errors"},
    "metrics": {"functional", "metrics"},
    "partition": SPLIT_MAY,
    "reparam": {"argument_checks", "functional", "reparam"},
    "optim": TENSORS_MAY | SPLIT_MAY | {"optim", "reparam"},
    "swap": SWAP_MAY,
    "probe": PROBE_MAY,
    "figure_style": set(),
    "report": {*NAMES, "extras", "figure_style", "report"},
    "record": {"json_numbers", "record"},
    "panels": SHOWN_MAY,
    "tensorboard": SHOWN_MAY | {"tensorboard"},
    "runs": SHOWN_MAY | {"runs", "tensorboard"},
    "html": SHOWN_MAY | {"html", "runs"},
    "figures": SHOWN_MAY | {"figure_style", "figures", "runs"},
    "recorder": PROBE_MAY | SHOWN_MAY | {"recorder", "tensorboard"},
    "callbacks": PROBE_MAY
    | SWAP_MAY
    | SHOWN_MAY
    | {"callbacks", "figures", "recorder", "runs", "tensorboard"},
    "cli": PROBE_MAY | {"cli", "figures", "html", "runs"},
}
# By layer, which packages beside the standard library.
THIRD_PARTY = {
    "": set(),
    "argument_checks": set(),
    "errors": set(),
    "extras": set(),
    "json_numbers": set(),
    "lightning_packages": {"typing_extensions"},
    "partition_names": set(),
    "quantity": set(),
    "quantities": set(),
    "kernels": {"torch", "triton"},
    "functional": {"torch"},
    "distributed": {"torch", "lightning"},
    "metrics": {"torch", "torchmetrics"},
    "partition": {"torch", "rich", "pandas"},
    "reparam": {"torch"},
    "optim": {"torch"},
    "swap": {"torch", "lightning", "typing_extensions"},
    "probe": {"torch", "numpy", "lightning", "lightning_utilities"},
    "figure_style": {"matplotlib"},
    "report": {"rich", "matplotlib", "pandas"},
    "record": set(),
    "panels": {"numpy"},
    "tensorboard": {"numpy", "tensorboard", "werkzeug"},
    "runs": {"numpy", "tensorboard"},
    "html": set(),
    "figures": {"matplotlib", "numpy"},
    "recorder": {"torch", "lightning_utilities", "transformers", "typing_extensions"},
    "callbacks": {
        *("torch", "lightning", "lightning_utilities", "rich", "typing_extensions", "wandb"),
    },
    "cli": {"torch", "lightning", "jsonargparse", "yaml", "rich"},
}


def module_files():
    """Map dotted names below the package to files, through the link to callbacks."""
    files = {}
    for folder, subfolders, names in os.walk(PACKAGE, followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        for name in names:
            if name.endswith(".py"):
                parts = Path(folder, name).relative_to(PACKAGE).with_suffix("").parts
                dotted = ".".join(part for part in parts if part != "__init__")
                files[dotted] = Path(folder, name)
    return files


def is_for_type_checkers(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in (
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    )


def imported_names(source):
    """Yield every module imported anywhere in it, but for those that only type checkers see."""
    pending = [ast.parse(source)]
    while pending:
        node = pending.pop()
        if is_for_type_checkers(node):
            pending.extend(node.orelse)
            continue
        pending.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: import absolutely, not relatively"
            # Of the package itself, `from lightning_linf import record` imports it.
            if node.module == ROOT:
                yield from (f"{ROOT}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def wrong_imports(module, source):
    """List the imports of a module that its layer must not make."""
    layer = module.split(".")[0]
    wrong = []
    for name in imported_names(source):
        package, _, rest = name.partition(".")
        if package == ROOT:
            if rest.split(".")[0] not in LAYERS[layer]:
                wrong.append(name)
        elif package not in sys.stdlib_module_names and package not in THIRD_PARTY[layer]:
            wrong.append(name)
    return wrong


def test_no_module_imports_itself_by_a_detour():
    files = module_files()
    graph = {}
    for module, file in files.items():
        source = file.read_text(encoding="utf-8").replace("if TYPE_CHECKING:", "if True:")
        if module and file.name != "__init__.py":  # those only hand names on
            names = {name.removeprefix(f"{ROOT}.") for name in imported_names(source)}
            graph[module] = names & files.keys()
    order = list(TopologicalSorter(graph).static_order())  # a CycleError names the circle
    assert set(order) >= graph.keys()  # and the packages that are imported


def test_every_layer_has_a_row_in_the_table():
    assert {module.split(".")[0] for module in module_files()} == set(LAYERS) == set(THIRD_PARTY)


@pytest.mark.parametrize("module", module_files())
def test_module_imports_only_what_its_layer_may(module):
    assert wrong_imports(module, module_files()[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("functional.x", "import lightning_linf.metrics"),
        ("functional.x", "from lightning_linf import quantities"),
        ("functional.x", "import numpy as np"),
        ("functional.x", "def f():\n    from torchmetrics import Metric"),
        ("metrics.x", "from lightning_linf.probe.landscape import Landscape"),
        ("metrics", "import lightning"),
        ("partition.x", "from lightning_linf.functional import gini"),
        ("partition.x", "from transformers.pytorch_utils import Conv1D"),
        ("reparam.x", "from lightning_linf.optim import BlockwiseAdam"),
        ("probe.x", "from lightning_linf.callbacks import LinfSmoothnessMonitor"),
        ("probe.x", "import recipes.gpt2"),
        ("probe.x", "try:\n    import yaml\nexcept ImportError:\n    pass"),
        ("report.x", "import torch"),
        ("report.x", "from lightning_linf.probe import Smoothness"),
        ("tensorboard.plugin", "from lightning_linf import callbacks"),
        ("tensorboard.plugin", "def f():\n    import torch"),
        ("tensorboard.writer", "import lightning.pytorch"),
        ("record.x", "import numpy as np"),
        ("record.x", "from lightning_linf.report import Interval"),
        ("tensorboard.writer", "from lightning_linf.functional import heterogeneity"),
        ("callbacks.x", "from recipes.settings import parse"),
        ("callbacks.x", "from callbacks.monitor import GeometryMonitor"),
        ("probe.x", "from lightning_linf.cli import main"),
        ("report.x", "import jsonargparse"),
        ("cli.x", "import transformers"),
        ("", "import torch"),
        ("quantities", "from lightning_linf.callbacks import LinfSmoothnessMonitor"),
    ],
)
def test_wrong_arrow_is_found(module, line):
    assert len(wrong_imports(module, line)) == 1


def test_relative_imports_are_found():
    with pytest.raises(AssertionError, match="import absolutely"):
        wrong_imports("functional.x", "from . import random")


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )


def test_package_imports_neither_torch_nor_lightning_and_optimizers_only_torch():
    finished = run_python(
        "import sys\n"
        "import lightning_linf, lightning_linf.record, lightning_linf.report\n"
        "import lightning_linf.quantities, lightning_linf.partition_names\n"
        "import lightning_linf.cli, lightning_linf.tensorboard\n"
        "dir(lightning_linf), lightning_linf.__all__\n"
        "heavy = {'torch', 'numpy', 'lightning', 'torchmetrics', 'tensorboard'}\n"
        "heavy &= set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import lightning_linf.functional, lightning_linf.optim, lightning_linf.partition\n"
        "import lightning_linf.reparam\n"
        "heavy = {'lightning', 'torchmetrics', 'tensorboard'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert finished.returncode == 0, finished.stderr


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lightning_linf' has no attribute 'nothing'"):
        lightning_linf.nothing  # noqa: B018  # asking for it is the test


@pytest.mark.parametrize("name", lightning_linf.__all__)
def test_public_name_resolves_to_what_is_called_so_and_documented(name):
    value = getattr(lightning_linf, name)
    assert value.__name__ == name
    assert value.__doc__
    assert name in dir(lightning_linf)


def test_public_names_are_those_that_type_checkers_see():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if is_for_type_checkers(node)]
    seen = {alias.asname: statement.module for statement in block.body for alias in statement.names}
    assert seen == lightning_linf._HOMES
    assert lightning_linf.__all__ == sorted(seen)


@pytest.mark.parametrize(
    "package",
    [
        "functional",
        "metrics",
        "optim",
        "partition",
        "probe",
        "record",
        "recorder",
        "reparam",
        "report",
        "callbacks",
    ],
)
def test_every_public_name_of_a_subpackage_is_exported_explicitly(package):
    tree = ast.parse(module_files()[package].read_text(encoding="utf-8"))
    module = import_module(f"{ROOT}.{package}")
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    for alias in (alias for node in imports for alias in node.names):
        assert alias.asname == alias.name, "write `X as X`"
        assert hasattr(module, alias.name)


@pytest.mark.parametrize("module", module_files())
def test_module_has_a_docstring(module):
    tree = ast.parse(module_files()[module].read_text(encoding="utf-8"))
    assert (ast.get_docstring(tree) or "").endswith(".")


@needs_source_tree
def test_callbacks_are_a_link_to_the_folder_at_the_top():
    link = PACKAGE / "callbacks"
    assert link.is_symlink()
    assert link.readlink() == Path("../callbacks")
    assert (SOURCE_TREE / "callbacks" / "__init__.py").is_file()
    assert not (SOURCE_TREE / "callbacks").is_symlink()


@needs_source_tree
def test_packages_on_disk_are_those_listed_for_the_build():
    text = (SOURCE_TREE / "pyproject.toml").read_text(encoding="utf-8")
    setuptools = tomllib.loads(text)["tool"]["setuptools"]
    on_disk = [
        ".".join([ROOT, *file.parent.relative_to(PACKAGE).parts])
        for file in module_files().values()
        if file.name == "__init__.py"
    ]
    assert sorted(setuptools["packages"]) == sorted(on_disk)
    assert setuptools["package-dir"] == {f"{ROOT}.callbacks": "callbacks"}
    # A folder with modules and no __init__.py would be left out without a word.
    folders = {file.parent for file in module_files().values()}
    assert all((folder / "__init__.py").is_file() for folder in folders)


@needs_source_tree
def test_packages_that_are_imported_are_declared():
    project = tomllib.loads((SOURCE_TREE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    used = (*("tensorboard", "cli", "figures", "kernels", "loggers", "notebook", "transformers"),)
    requirements = [*project["dependencies"], *(text for extra in used for text in extras[extra])]
    names = {re.match(r"[\w-]+", text).group().replace("-", "_") for text in requirements}
    comes_with_torch = {"typing_extensions"}
    comes_with_jsonargparse = {"yaml"}
    comes_with_tensorboard = {"werkzeug"}
    imported = set().union(*THIRD_PARTY.values())
    come_along = comes_with_torch | comes_with_jsonargparse | comes_with_tensorboard
    ours_or_needed_by_others = {"lightning_linf", "accelerate", "mlflow_skinny", "comet_ml"}
    assert imported == (names - ours_or_needed_by_others) | come_along


@needs_source_tree
def test_recipes_and_benchmarks_import_no_private_module():
    for file in [*SOURCE_TREE.glob("recipes/**/*.py"), *SOURCE_TREE.glob("benchmarks/*.py")]:
        for name in imported_names(file.read_text(encoding="utf-8")):
            assert not name.startswith(("callbacks", "tests")), f"{file.name} imports {name}"
            if name != "torch.utils._python_dispatch":  # TorchDispatchMode has no public home
                assert "._" not in name, f"{file.name} imports {name}"
