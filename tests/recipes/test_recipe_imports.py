import ast
from graphlib import TopologicalSorter

from support.recipes import RECIPES


def imported(file):
    """Yield every module that a file imports anywhere, for type checkers too."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_modules_of_the_recipes_import_each_other_in_no_circle():
    files = {
        ".".join(file.relative_to(RECIPES).with_suffix("").parts): file
        for file in RECIPES.rglob("*.py")
        if file.name != "__init__.py"
    }
    graph = {name: {n for n in imported(file) if n in files} for name, file in files.items()}
    assert "training.config" in graph["gpt2"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle
