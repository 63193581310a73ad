"""JSON lines as every reader of this project takes them: bounded, and each fault named by file and line.

A line ends at a line feed. Blank lines are passed over, and a byte-order mark before a line is taken off.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError, listed
from gpt_data.store.unpacking import open_unpacked

BOM = b"\xef\xbb\xbf"
JSON_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}


def read_json_lines(
    path: Path, longest: int, most: int | None = None, *, advice: str = ""
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file of JSON lines, compressed or not, each with its place.

    Args:
        longest: Bytes of a line, unpacked; no more than this is ever held.
        most: Bytes of the file, unpacked; without bound if None.

    Yields:
        Where it stands (``PATH line N``), for messages, and the object.

    Raises:
        InputError: If the file cannot be read or unpacked, is longer than ``most``, or a line is too long
            or not a JSON object; file and line are named.
    """
    for where, line in read_lines(path, longest, most, advice=advice):
        if not is_blank(line):
            yield where, parse_record(line, where)


def read_lines(
    path: Path, longest: int, most: int | None = None, *, advice: str = ""
) -> Iterator[tuple[str, bytes]]:
    """The lines of a file, compressed or not, each with its place; a byte-order mark is taken off.

    Args:
        longest: Bytes of a line, unpacked; no more than this is ever held.
        most: Bytes of the file, unpacked; without bound if None.

    Yields:
        Where it stands (``PATH line N``), and the line with what ends it.

    Raises:
        InputError: If the file cannot be read or unpacked, or a line or the file is too long.
    """
    total = 0
    with open_unpacked(path) as file:
        number = 0
        while line := file.readline(longest + 1):
            number += 1
            where = f"{path} line {number}"
            if len(line) > longest:
                raise InputError(f"{where} is longer than {longest} bytes{advice}")
            total += len(line)
            if most is not None and total > most:
                raise InputError(f"{path} is longer than {most} bytes, unpacked")
            yield where, line.removeprefix(BOM)


def is_blank(line: bytes) -> bool:
    """Whether a line holds nothing, and is passed over."""
    return not line or line.isspace()


def parse_record(content: bytes, where: str) -> dict[str, Any]:
    """One JSON object.

    Args:
        content: UTF-8; the caller has bounded its length.

    Raises:
        InputError: If it is anything else.
    """
    try:
        value = json.loads(content.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 at byte {error.start}") from error
    # a number of thousands of digits is a plain ValueError, deep nesting a RecursionError
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{where} is a JSON {json_type(value)}, expected an object")
    return value


def text_field(record: Mapping[str, Any], where: str, field: str = "text") -> str:
    """A field that must be a string.

    Raises:
        InputError: If there is no such field, or it holds something else.
    """
    if field not in record:
        has = f"has {listed(sorted(record))}" if record else "is empty"
        raise InputError(f"{where} has no field {field!r}; it {has}")
    value = record[field]
    if not isinstance(value, str):
        raise InputError(f"{where}: field {field!r} is {_article(json_type(value))}, expected a string")
    return value


def json_type(value: object) -> str:
    """What JSON calls a value's type.

    >>> json_type(None), json_type(1.5), json_type([])
    ('null', 'number', 'array')
    """
    return JSON_TYPES.get(type(value), "number")


def _article(name: str) -> str:
    return name if name == "null" else f"{'an' if name[0] in 'ao' else 'a'} {name}"
