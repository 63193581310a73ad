"""Documents from files and folders: text and JSON lines, plain or compressed, in bounded memory."""

from __future__ import annotations

import io
import json
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import regex

from bpe_scratch.errors import FileFormatError, TokenizerError
from bpe_scratch.files import BOM, decoded, naming
from bpe_scratch.patterns import PATTERNS, resolve_pattern, to_utf8
from bpe_scratch.unpacking import COMPRESSIONS, damage, unpack

TEXT_KINDS, LINE_KINDS = (".txt", ".text", ".md"), (".jsonl",)
MAX_STRETCH = 64 * 2**20
"""Bytes of text that are held at most: a line of JSON, or a text where it cannot be cut."""
_CHUNK = 1 << 18
_PART = 1 << 22
# with every named pattern a piece ends between a letter or number and white space, whatever stands around
_LAST_CUT = regex.compile(r"(?r)(?<=[\p{L}\p{N}])(?=\s)")


class Part(NamedTuple):
    """A document, or a part of it: cut where a piece ends, so that cutting does not show in the ids."""

    text: str
    last: bool  # whether the document ends with it


def read_parts(
    paths: Iterable[Path], field: str = "text", pattern: str = "none", tell: Callable[[str], None] = print
) -> Iterator[Part]:
    """The documents of files and folders, read as they are needed.

    A file whose name has ``.jsonl`` has a document in a field of each line, any other is one document;
    ``.gz``, ``.xz``, ``.bz2`` and ``.zst`` are unpacked. Of a folder all files of these kinds and ``.txt``,
    ``.text``, ``.md``, links followed, in the order of their names; ``tell`` is told in one line how many are
    left out. Long texts come in parts if ``pattern``, which cuts them into pieces, is a name, but ``none``.

    Raises:
        FileFormatError: Naming file and line.
    """
    can_be_cut = resolve_pattern(pattern) in PATTERNS.keys() - {"none"}
    for path in paths:
        for file in _find_files(path, tell) if path.is_dir() else [path]:
            if ".jsonl" in _kinds(file):
                yield from _json_lines(file, field)
            else:
                yield from _text_parts(file, _PART if can_be_cut else MAX_STRETCH)


def _kinds(path: Path) -> list[str]:
    return [suffix.lower() for suffix in path.suffixes[-2:]]


def _is_known(path: Path) -> bool:
    kinds = [kind for kind in _kinds(path) if kind not in COMPRESSIONS]
    return bool(kinds) and kinds[-1] in TEXT_KINDS + LINE_KINDS


def _find_files(folder: Path, tell: Callable[[str], None]) -> list[Path]:
    found: list[Path] = []
    others: Counter[str] = Counter()
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        again = Path(place).resolve() in seen
        seen.add(Path(place).resolve())
        # a link may lead back to where it stands
        folders[:] = [] if again else sorted(name for name in folders if not name.startswith("."))
        for name in [] if again else names:
            path = Path(place, name)
            if not path.exists():
                others["links that lead nowhere"] += 1
            elif not path.is_file() or name.startswith(".") or not _is_known(path):
                others["hidden" if name.startswith(".") else path.suffix or "without a suffix"] += 1
            else:
                found.append(path)
    if others:
        kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(others.items())[:10])
        tell(f"{folder}: {len(found)} files read, {others.total()} left out: {kinds}")
    if not found:
        raise FileFormatError(f"{folder} holds no file of {', '.join(TEXT_KINDS + LINE_KINDS)}")
    return sorted(found)


@contextmanager
def _reading(path: Path) -> Iterator[io.BufferedIOBase]:
    """A file through its compression; what is wrong with it, or refused meanwhile, has its name."""
    kind = path.suffix.lower()
    try:
        with path.open("rb") as file, naming(path):
            yield unpack(file, kind) if kind in COMPRESSIONS else file
    except ModuleNotFoundError as error:
        raise FileFormatError(f"{path} {error}") from None
    except damage() as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise FileFormatError(f"{path} cannot be unpacked: {error}") from None


def _json_lines(path: Path, field: str) -> Iterator[Part]:
    with _reading(path) as file:
        for number, line in enumerate(iter(partial(file.readline, MAX_STRETCH + 1), b""), start=1):
            with naming(f"line {number}"):
                text = _text_in(line.removeprefix(BOM) if number == 1 else line, field)
            if text is not None:
                yield Part(text, True)


def _text_in(line: bytes, field: str) -> str | None:
    if len(line) > MAX_STRETCH:
        raise TokenizerError(f"more than {MAX_STRETCH} bytes")
    if not line.strip():
        return None
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"no JSON: {str(error)[:200]}") from None
    text = record.get(field) if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise TokenizerError(f"no text in field {field!r} of {reprlib.repr(record)}")
    to_utf8(text if b"\\u" in line else "")  # the only way for half a surrogate pair to come in
    return text


def _text_parts(path: Path, size: int) -> Iterator[Part]:
    """One document, in parts of some ``size`` bytes; where there is no place to cut it, of more."""
    held, wanted, line, mark = bytearray(), size, 1, BOM
    with _reading(path) as file:
        for chunk in iter(partial(file.read, _CHUNK), b""):
            held += chunk
            if len(held) >= wanted:
                at = _place_to_cut(held) if size < MAX_STRETCH else 0
                if at:
                    yield Part(decoded(bytes(held[:at]).removeprefix(mark), line), False)
                    line += held.count(b"\n", 0, at)
                    mark = b""
                    del held[:at]
                wanted = size if at else 2 * len(held)
            if len(held) > MAX_STRETCH:
                raise TokenizerError(f"{MAX_STRETCH} bytes of text that cannot be cut; use JSON lines")
        yield Part(decoded(bytes(held).removeprefix(mark), line), True)


def _place_to_cut(held: bytearray) -> int:
    # a character may be cut off at the end; what is not UTF-8 elsewhere is named when it is decoded
    text = held.decode("utf-8", "surrogateescape")
    found = _LAST_CUT.search(text)
    return len(text[: found.start()].encode("utf-8", "surrogateescape")) if found else 0
