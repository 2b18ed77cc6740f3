"""What the documents name is there: files, modules, settings, flags, and the rooms of the house."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import os
import re
import tomllib
import typing
from pathlib import Path

import pytest

from memocr_jax.config import Config

REPOSITORY = Path(__file__).parents[1]
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
FOLDERS = ("", "memocr_jax", "memocr_jax/models", "render", "docs", "launch")
"""Where a file that a document names may start."""
MADE = ("runs/", "models/", "exported/", "prepared/", "data/", "stacks/", "trajectories/", "journal/")
"""Folders that commands make, and that stand in examples."""


def settings(section: type, before: str = "") -> set[str]:
    """All fields of the configuration, with their sections: "rl.group_size"."""
    names, hints = set(), typing.get_type_hints(section)
    for field in dataclasses.fields(section):
        names.add(before + field.name)
        for kind in (hints[field.name], *typing.get_args(hints[field.name])):
            if dataclasses.is_dataclass(kind):
                names |= settings(kind, f"{before}{field.name}.")
    return names


SETTINGS = settings(Config)


def found(name: str, document: Path) -> bool:
    places = [document.parent, *(REPOSITORY / folder for folder in FOLDERS)]
    return any(os.path.exists(place / name) for place in places)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_a_document_names_is_there(document):
    text = document.read_text("utf-8")
    prose = re.sub(r"`[^`\n]*`", "", text)
    links = {link for link in re.findall(r"\]\(([^)#\s]+)", prose) if "://" not in link}
    assert {link for link in links if not (document.parent / link).exists()} == set(), "links"

    modules = set(re.findall(r"python -m ([\w.]+)", text))
    assert {name for name in modules if importlib.util.find_spec(name) is None} == set(), "modules"

    files = set(re.findall(r"(?<![\w/.<-])((?:[\w-]+/)+[\w.-]+\.(?:py|sh|yaml|md|json|css))\b", text))
    files = {name for name in files if not name.startswith(MADE) and "NAME" not in name}
    assert {name for name in files if not found(name, document)} == set(), "files"

    flags = set(re.findall(r"--([a-z_]+(?:\.[a-z-]+)+)", text))
    assert {flag for flag in flags if flag.replace("-", "_") not in SETTINGS} == set(), "flags"

    sections = {name.split(".")[0] for name in SETTINGS if "." in name}
    named = {
        name for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", text) if name.split(".")[0] in sections
    }
    code = {name for name in named if name.startswith("render.") and found_in_code(name)}
    files = {name for name in named if found(name, document)}
    assert named - SETTINGS - code - files == set(), "settings"


def found_in_code(name: str) -> bool:
    """Whether `name` is a module of the renderer, or something in one ("render.views.fit")."""
    parent, _, last = name.rpartition(".")
    if importlib.util.find_spec(parent) is None:
        return False
    return hasattr(importlib.import_module(parent), last) or importlib.util.find_spec(name) is not None


def test_the_readme_draws_the_layers():
    """The rooms of the README's table, from top to bottom, are those that import-linter holds."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    layers = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    held = [set(re.split(r"\s*[|:]\s*", layer)) for layer in layers[1:]]

    readme = (REPOSITORY / "README.md").read_text("utf-8")
    table = readme[readme.index("| room |") : readme.index("\n\n", readme.index("| room |"))]
    rooms = re.findall(r"^\| \[`(\w+)/`\]\(memocr_jax/\w+\)", table, re.MULTILINE)
    drawn = []
    for layer in held:
        drawn.append(set(rooms[: len(layer)]))
        rooms = rooms[len(layer) :]
    assert drawn == held
    assert rooms == []


def test_every_room_says_what_its_files_do():
    for room in (path.parent for path in (REPOSITORY / "memocr_jax").glob("*/__init__.py")):
        contents = ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))) or ""
        files = {path.stem for path in room.glob("*.py")} - {"__init__", "__main__"}
        missing = {name for name in files if f"`{name}`" not in contents}
        assert missing == set(), f"{room.name}/__init__.py does not name these files"
