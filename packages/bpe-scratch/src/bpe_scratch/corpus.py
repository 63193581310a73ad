"""Documents from files: text, JSON lines, and both compressed."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from bpe_scratch.errors import FileFormatError, TextError
from bpe_scratch.patterns import to_utf8

_OPENERS = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
# a text file is read in parts of this size, cut at line ends: bounded memory for any file
_PART = 1 << 22


def read_documents(paths: Iterable[Path], field: str = "text") -> Iterator[str]:
    """The documents of files, read as they are needed.

    Args:
        paths: ``*.jsonl`` has a document in a field of each line; any other file is text, cut at line ends
            into parts of a few megabytes. ``.gz``, ``.xz`` and ``.bz2`` behind the name are unpacked.
        field: Field of JSON lines.

    Raises:
        FileFormatError: Naming file and line.
    """
    for path in paths:
        with _open(path) as file:
            lines = _json_lines(file, path, field) if ".jsonl" in path.suffixes else _text_parts(file, path)
            yield from lines


def _open(path: Path) -> IO[bytes]:
    opener: Any = _OPENERS.get(path.suffix)
    return opener(path, "rb") if opener is not None else path.open("rb")


def _json_lines(file: IO[bytes], path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            text = json.loads(line)[field]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FileFormatError(f"{path}: line {number}: no text in field {field!r}: {error!r}") from None
        if not isinstance(text, str):
            raise FileFormatError(f"{path}: line {number}: field {field!r} is not a text")
        if b"\\u" in line:  # the only way for half a surrogate pair to come in
            _check_characters(text, path, number)
        yield text


def _check_characters(text: str, path: Path, number: int) -> None:
    try:
        to_utf8(text)
    except TextError as error:
        raise FileFormatError(f"{path}: line {number}: {error}") from None


def _text_parts(file: IO[bytes], path: Path) -> Iterator[str]:
    number = 1
    while lines := file.readlines(_PART):
        raw = b"".join(lines)
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = number + raw.count(b"\n", 0, error.start)
            raise FileFormatError(
                f"{path}: line {line}: byte 0x{raw[error.start]:02X} is not UTF-8"
            ) from None
        number += len(lines)
