"""Reading and writing files whole, checking a vocabulary against its merges, and GPT-2's two files."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bpe_scratch.byte_alphabet import CHAR_TO_BYTE, from_printable
from bpe_scratch.errors import FileFormatError, TokenizerError, WriteError
from bpe_scratch.vocabulary import Vocabulary

MAX_FILE_BYTES = 256 * 2**20
"""Largest tokenizer file that is read."""
BOM = b"\xef\xbb\xbf"


def decoded(raw: bytes, path: Path, line: int = 1) -> str:
    """The text of bytes that begin in a ``line`` of a file.

    Raises:
        FileFormatError: If a byte is not UTF-8, naming its line.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise FileFormatError(f"{path}: line {line}: byte 0x{raw[error.start]:02X} is not UTF-8") from None


def read_text(path: Path) -> str:
    """The text of a tokenizer file, which may not be too large; a byte-order mark is dropped."""
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    if len(raw) > MAX_FILE_BYTES:
        raise FileFormatError(f"{path}: more than {MAX_FILE_BYTES} bytes: no tokenizer file is so large")
    return decoded(raw.removeprefix(BOM), path)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write in place of ``path``, which it replaces when all is written, or not at all.

    A link stays, and what it names is replaced. A device or a pipe is written to: nothing may take its place.

    Raises:
        WriteError: Naming the file.
    """
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as file:
                yield file
            return
        place = Path(os.path.realpath(path))
        handle, name = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(place)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise FileFormatError(f"key {twice!r} is given twice")
    return found


def load_json(text: str, name: str) -> dict[str, Any]:
    """A JSON object, with each key once; ``name`` is the file's, for messages."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"{name}: line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise FileFormatError(f"{name}: nested too deep") from None
    except ValueError as error:
        # a key given twice, or an integer of thousands of digits
        raise FileFormatError(f"{name}: {error}") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{name}: line 1: expected a JSON object, found {type(value).__name__}")
    return value


def read_gpt2(vocab_path: Path, merges_path: Path) -> tuple[Vocabulary, dict[str, int]]:
    """Vocabulary and special tokens of GPT-2's two files.

    They do not say which tokens are special: those that neither are a byte nor made by a merge, which could
    never come out of encoding.
    """
    vocab = load_json(read_text(vocab_path), str(vocab_path))
    merges = parse_merges(read_text(merges_path), str(merges_path))
    check_ids(vocab, str(vocab_path))
    made = {char for char in CHAR_TO_BYTE if char in vocab} | {left + right for _, left, right in merges}
    special = {text: index for text, index in vocab.items() if text not in made}
    ordinary = {text: index for text, index in vocab.items() if text in made}
    _refuse_missing_merges(len(merges), len(special), len(ordinary), str(merges_path))
    return build_vocabulary(ordinary, merges, str(vocab_path), str(merges_path)), special


def parse_merges(text: str, name: str) -> list[tuple[int, str, str]]:
    """``(line, left, right)`` of each merge, lines ended as in Unix or in Windows."""
    merges = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise FileFormatError(f"{name}: line {number}: expected two parts, found {line[:60]!r}")
        merges.append((number, left, right))
    return merges


def build_vocabulary(
    vocab: Mapping[str, int],
    merges: list[tuple[int, str, str]],
    vocab_name: str,
    merges_name: str,
    *,
    whole_pieces: bool = False,
    entry: str = "line",
) -> Vocabulary:
    """Check a vocabulary and its merges ``(line, left, right)`` against each other.

    The names are those of the files, and ``entry`` is what ``line`` counts, for messages.
    """
    made = {char for char in CHAR_TO_BYTE if char in vocab}
    seen: set[tuple[str, str]] = set()
    rows: list[tuple[int, int, int]] = []
    for number, left, right in merges:
        place = f"{merges_name}: {entry} {number}"
        for part in (left, right):
            if part not in made:
                raise FileFormatError(f"{place}: part {part[:60]!r} is not known yet")
        if (left, right) in seen:
            raise FileFormatError(f"{place}: merge {left[:40]} {right[:40]} is given twice")
        joined = left + right
        if joined not in vocab:
            raise FileFormatError(f"{place}: {joined[:60]!r} is not in the vocabulary")
        seen.add((left, right))
        made.add(joined)
        rows.append((vocab[left], vocab[right], vocab[joined]))
    _refuse_missing_merges(len(merges), len(vocab) - len(made), len(made), merges_name)
    tokens: list[bytes | None] = [None] * (max(vocab.values()) + 1 if vocab else 0)
    try:
        for text, index in vocab.items():
            tokens[index] = from_printable(text)
        return Vocabulary(tokens, rows, whole_pieces=whole_pieces)
    except (TokenizerError, ValueError) as error:
        raise FileFormatError(f"{vocab_name}: {error}") from None


def _refuse_missing_merges(merges: int, unmade: int, made: int, name: str) -> None:
    if unmade > made:
        raise FileFormatError(f"{name}: {merges} merges leave {unmade} of {unmade + made} tokens unmade")


def check_ids(vocab: Mapping[str, Any], name: str) -> None:
    """Check that ids are integers, each given once and none far beyond the others."""
    owner: dict[int, str] = {}
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index < 1 << 31:
            raise FileFormatError(
                f"{name}: token {token[:60]!r} has id {index!r}, not an integer from 0 to 2^31 - 1"
            )
        if index in owner:
            raise FileFormatError(
                f"{name}: id {index} belongs to {owner[index][:60]!r} and to {token[:60]!r}"
            )
        owner[index] = token
    if owner and max(owner) >= 4 * len(owner) + 1024:
        raise FileFormatError(f"{name}: id {max(owner)} is far beyond the {len(owner)} tokens")
