"""What functional exports is a function or a class, whichever module is imported first."""

import ast
import pkgutil
import subprocess
import sys

import pytest

from lightning_linf import functional

MODULES = [module.name for module in pkgutil.iter_modules(functional.__path__)]


@pytest.mark.parametrize(
    "name",
    [
        *("batch_excess", "block_norm", "block_smoothness", "cross_fitted_one_one_norm"),
        *("dual_block_norm", "dual_direction", "heterogeneity", "lambda_max", "noise"),
        *("one_one_norm", "operator_norm", "between_within", "rotate", "row_norms"),
        *("spectral_ascent", "spectral_dual", "spectral_norm", "stability_threshold"),
    ],
)
def test_quantity_is_a_documented_function(name):
    function = getattr(functional, name)
    assert callable(function)
    assert function.__name__ == name
    assert function.__doc__


@pytest.mark.slow
def test_names_are_functions_whichever_module_is_imported_first():
    code = f"""
import sys
from importlib import import_module

for first in {MODULES}:
    for loaded in [name for name in sys.modules if name.startswith("lightning_linf")]:
        del sys.modules[loaded]
    import_module("lightning_linf.functional." + first)
    functional = import_module("lightning_linf.functional")
    for other in {MODULES}:
        import_module("lightning_linf.functional." + other)
    names = [n for n in {MODULES} if callable(getattr(functional, n))]
    print(names)
"""
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert finished.returncode == 0, finished.stderr
    found = [ast.literal_eval(line) for line in finished.stdout.splitlines()]
    assert len(found) == len(MODULES)
    expected = [
        *("batch_excess", "block_smoothness", "heterogeneity", "lambda_max", "noise"),
        *("one_one_norm", "operator_norm"),
    ]
    assert all(names == expected for names in found), found
