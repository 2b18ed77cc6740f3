"""Configurations as nested mappings, and as YAML: read strictly, written with every field spelled out."""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any, Literal

import yaml

from memocr_jax.config.sections import Config
from memocr_jax.core.errors import UserError, nearest
from render.errors import RenderError


def load_config(path: str | Path) -> Config:
    """Read a YAML file strictly: unknown keys and wrong types raise UserError.

    `base: FILE` at its top (relative to the file that says so) names a configuration that it changes.
    """
    return from_tree(Config, _read(Path(path), f"--config {path}", ()), str(path))


def _read(path: Path, source: str, changed: tuple[Path, ...]) -> Any:
    """The file's tree over those of its bases, which are checked one by one; `changed`: whose base it is."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict) or "base" not in tree:
        return {} if tree is None else tree
    name = tree.pop("base")
    if not isinstance(name, str):
        raise UserError(f"{path}: base is {name!r}, not the name of a file")
    base, changed = path.parent / name, (*changed, path.resolve())
    if base.resolve() in changed:
        raise UserError(f"{path}: base {name} leads back to a file that it is the base of")
    below = _read(base, f"{path}: base {name}", changed)
    from_tree(Config, below, str(base))  # so that a mistake is reported for its own file
    return merged(below, {name: section for name, section in tree.items() if section is not None})


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved configuration, every field spelled out; `load_config` reads it back."""
    Path(path).write_text(yaml.safe_dump(to_tree(config), sort_keys=False), encoding="utf-8")


def to_tree(config: Any) -> dict[str, Any]:
    """The configuration as nested dictionaries of plain values (tuples become lists)."""
    tree = dataclasses.asdict(config)

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return plain(tree)


def from_tree(cls: type, tree: Any, source: str, prefix: str = "") -> Any:
    """Build dataclass `cls` from nested mappings; `source` and the dotted field name go into errors."""
    if not isinstance(tree, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} is {tree!r}, not a mapping of fields")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    for key in tree:
        if key not in names:
            raise UserError(f"{source}: unknown field {prefix}{key}{nearest(str(key), names)}")
    try:
        return cls(**{key: _value(hints[key], value, source, prefix + key) for key, value in tree.items()})
    except RenderError as error:
        raise UserError(f"{source}: {error}") from error


def _value(hint: Any, value: Any, source: str, name: str) -> Any:
    """`value` checked against the type `hint` of the field `name`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_tree(hint, {} if value is None else value, source, name + ".")
    if origin is Literal:
        if value not in args:
            raise UserError(f"{source}: {name} is {value!r}{nearest(str(value), [str(a) for a in args])}")
        return value
    if origin is tuple:
        if not isinstance(value, list):
            raise UserError(f"{source}: {name} is {value!r}, not a list; write [{value}]")
        return tuple(_value(args[0], item, source, f"{name}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{source}: {name} is {value!r}, not a mapping of fields")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), value, source, name)
    if hint is float and isinstance(value, str):
        # YAML 1.1 reads 1e-6 (no dot) as a string; people mean the number.
        try:
            value = float(value)
        except ValueError:
            value = str(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        kinds = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
        hint_text = kinds.get(hint, getattr(hint, "__name__", str(hint)))
        advice = f"; write {name.rsplit('.', 1)[-1]}: '{value}'" if hint is str else ""
        raise UserError(f"{source}: {name} is {value!r}, which is not {hint_text}{advice}")
    return value


def merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the values of `changes`, mappings within mappings merged."""
    result = dict(tree)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
