"""The panels' modules as one script, for a page that is a single file."""

import re
from pathlib import Path

_IMPORT = re.compile(r'^import\s+(\w+|\{[^}]*\})\s+from\s+"([^"]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
_DEFAULT_EXPORT = re.compile(r"^export \{ (\w+) as default \};\n", re.MULTILINE)


def bundle(entry: Path) -> str:
    """Put a module and all that it imports into one script.

    Each module becomes a function that gives its exports, called once, after those it imports. It
    covers the forms of import and export that the modules use, and no others.

    Raises:
        ValueError: If a module uses another form.
    """
    scripts: dict[Path, str] = {}
    _add(entry.resolve(), scripts)
    return "".join(scripts.values())


def _add(path: Path, scripts: dict[Path, str]) -> None:
    if path in scripts:
        return
    source = path.read_text(encoding="utf-8")
    opening = []
    for names, where in _IMPORT.findall(source):
        target = (path.parent / where).resolve()
        _add(target, scripts)
        bound = names if names.startswith("{") else f"{{ default: {names} }}"
        opening.append(f"const {bound} = {_variable(target)};\n")
    # A module has one kind or the other. (uPlot also has an `export` in a comment.)
    default = [f"default: {name}" for name in _DEFAULT_EXPORT.findall(source)]
    given = default or _EXPORT.findall(source)
    body = _DEFAULT_EXPORT.sub("", _EXPORT.sub("", _IMPORT.sub("", source)))
    if re.search(r"^(import|export)\b|\bimport\.meta\b|</script", body, re.MULTILINE):
        raise ValueError(f"bundle: {path.name} has an import or export of another form.")
    scripts[path] = (
        f"const {_variable(path)} = (() => {{\n{''.join(opening)}{body}"
        f"return {{ {', '.join(given)} }};\n}})();\n"
    )


def _variable(path: Path) -> str:
    return "module_" + re.sub(r"\W", "_", path.stem)
