"""The packaging says what the code needs: a fresh machine has nothing else."""

from __future__ import annotations

import ast
import re
import sys
from importlib import metadata
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


def declared() -> set[str]:
    """Names of the distributions that setup.py asks for, extras included."""
    strings = [
        node.value
        for node in ast.walk(ast.parse((REPOSITORY / "setup.py").read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    names = (re.match(r"[A-Za-z0-9._-]+(?=(\[\w+\])?[<>=])", text) for text in strings)
    return {re.sub("[-_.]+", "-", name.group()).lower() for name in names if name}


def imported(folder: str) -> dict[str, str]:
    """First file that imports each package from outside, by the package's name."""
    found: dict[str, str] = {}
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in names:
                found.setdefault(name.partition(".")[0], str(path.relative_to(REPOSITORY)))
    ours = {"memocr_jax", "render", "benchmarks", "setup", "tests", "conftest"} | sys.stdlib_module_names
    return {name: path for name, path in found.items() if name not in ours}


def test_every_import_is_declared():
    providers = metadata.packages_distributions()
    asked = declared()
    missing = [
        f"{path} imports {name}, of {providers.get(name, ['no installed package'])[0]}"
        for name, path in (imported("memocr_jax") | imported("render") | imported("tests")).items()
        if not {re.sub("[-_.]+", "-", d).lower() for d in providers.get(name, [name])} & asked
    ]
    assert not missing, "not in setup.py:\n" + "\n".join(missing)


def test_every_package_folder_is_packaged():
    # find_packages leaves out folders without __init__.py, silently.
    folders = {
        path.parent for package in ("memocr_jax", "render") for path in (REPOSITORY / package).rglob("*.py")
    }
    assert [str(f) for f in folders if not (f / "__init__.py").is_file()] == []
