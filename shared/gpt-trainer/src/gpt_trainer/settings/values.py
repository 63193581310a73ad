"""A configuration as flat keys: read from TOML and JSON, compared, and written back.

Keys are the fields' names; in a TOML file hyphens may stand for underscores, and tables only group.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from gpt_data.errors import InputError, naming, shown
from gpt_data.store.reading import read_bytes

CONFIG_LIMIT = 1 << 20
S = TypeVar("S")


def read_toml(path: Path) -> dict[str, Any]:
    """The file's keys, tables flattened, hyphens turned into underscores.

    Raises:
        InputError: If it cannot be read, is not TOML, or says something twice.
    """
    try:
        content = tomllib.loads(read_bytes(path, CONFIG_LIMIT, follow_link=True).decode("utf-8-sig"))
    except InputError as error:
        raise InputError(f"--config: {error}") from None
    # a number of thousands of digits is a plain ValueError, deep nesting a RecursionError
    except (ValueError, RecursionError) as error:
        raise InputError(f"--config {path} is not TOML: {error}") from None
    found: dict[str, Any] = {}
    for key, value in _leaves(content):
        name = key.replace("-", "_")
        if name in found:
            raise InputError(f"--config {path} gives {key} twice")
        found[name] = value
    return found


def _leaves(table: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield key, value


def flat(config: Any) -> dict[str, Any]:
    """Every field of every section of a configuration by name, as JSON values."""
    return {name: value for _, section in sections(config) for name, value in as_json(section).items()}


def as_json(section: Any) -> dict[str, Any]:
    """A dataclass of settings as JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(section).items()}


def field_names(kind: type[Any]) -> set[str]:
    """Names of a dataclass's fields."""
    return {item.name for item in fields(kind)}


def overlay(config: S, values: Mapping[str, Any], where: str) -> S:
    """A configuration of sections with some values replaced; keys that it does not have are passed over.

    Raises:
        InputError: If a value has the wrong type or does not fit.
    """
    return compose(
        config, {name: overlay_section(section, values, where) for name, section in sections(config)}, where
    )


def sections(config: Any) -> list[tuple[str, Any]]:
    """The sections of a configuration by name, in order."""
    return [(item.name, getattr(config, item.name)) for item in fields(config)]


def compose(config: S, parts: Mapping[str, Any], where: str = "") -> S:
    """A configuration of the same class with other sections, checked as a whole.

    Raises:
        InputError: If they do not fit each other.
    """
    with naming(where):
        return type(config)(**parts)


def overlay_section(section: S, values: Mapping[str, Any], where: str) -> S:
    """One dataclass with those of its fields replaced that ``values`` names.

    Args:
        values: Flat keys; others than its fields are passed over.

    Raises:
        InputError: If a value has the wrong type.
    """
    hints = get_type_hints(type(section))
    known = field_names(type(section))
    given = {name: convert(name, values[name], hints[name], where) for name in known & values.keys()}
    with naming(where):
        return replace(section, **given)  # type: ignore[type-var]


def check_choices(section: Any) -> None:
    """Refuse what is none of a field's choices: of a bool, and of a Literal.

    Raises:
        ValueError: Naming the field and its choices.
    """
    for name, hint in get_type_hints(type(section)).items():
        choices = {bool: (True, False)}.get(hint, get_args(hint))
        if choices and getattr(section, name) not in choices:
            raise ValueError(
                f"{name}={getattr(section, name)!r} is not one of {', '.join(map(str, choices))}"
            )


def convert(name: str, value: Any, kind: Any, where: str) -> Any:
    """A TOML or JSON value as what a field of type ``kind`` holds.

    Args:
        kind: bool, int, float, str, Path, a Literal, or one of these or None.

    Raises:
        InputError: If it does not fit.
    """
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None and NoneType in options:
        return None
    for option in options:
        if get_origin(option) is Literal:
            if value in get_args(option):
                return value
        elif option is Path and isinstance(value, str):
            return Path(value)
        elif option is float and type(value) in (int, float) and abs(value) <= sys.float_info.max:
            return float(value)
        elif type(value) is option:
            return value
    raise InputError(f"{where}: {name}={shown(value)} is not {_expected(options)}")


def _expected(options: Iterable[Any]) -> str:
    words = []
    for option in options:
        if get_origin(option) is Literal:
            words += [str(value) for value in get_args(option)]
        elif option is not NoneType:
            words.append({Path: "a path", float: "a finite number"}.get(option, option.__name__))
    return "one of " + ", ".join(words) if len(words) > 1 else " ".join(words)


def changed(before: Any, after: Any) -> list[str]:
    """Names of the fields that differ."""
    old, new = flat(before), flat(after)
    return [name for name in old if old[name] != new[name]]
