"""One JSON object of a file that a program of this project wrote: no duplicate key, NaN or infinity."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from gpt_data.errors import InputError, shown

SEAL = "sha256"


def parse_object(raw: bytes, path: Path) -> dict[str, Any]:
    """Parse one JSON object.

    Args:
        raw: UTF-8 text without a byte-order mark; the caller has bounded its length.

    Raises:
        InputError: If it is not exactly one JSON object with distinct keys and finite numbers.
    """
    try:
        value = json.loads(
            raw.decode(), object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
    # deep nesting ends in a RecursionError, which must not reach the user as a traceback
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, expected an object")
    return value


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with a sha256 of them, by which a file vouches for itself.

    >>> seal({"step": 1})["sha256"][:8]
    '66acd07f'
    """
    return {**values, SEAL: _digest(values)}


def check_seal(values: Mapping[str, Any], path: Path) -> None:
    """Refuse values that are not those that were sealed.

    Raises:
        InputError: If anything differs, or there is no seal.
    """
    if values.get(SEAL) != _digest({name: value for name, value in values.items() if name != SEAL}):
        raise InputError(f"{path} is damaged: its values are not those that it was written with")


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {shown(twice)} appears twice")
    return values


def _no_constant(literal: str) -> NoReturn:
    raise ValueError(f"{literal} is not JSON")


def _finite(literal: str) -> float:
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"{shown(literal)} overflows")
    return value
