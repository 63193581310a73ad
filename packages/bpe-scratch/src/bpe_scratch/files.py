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

Merge = tuple[str, str, str]
"""Where a merge stands, for messages, and its two parts in printable stand-ins."""
MAX_FILE_BYTES = 256 * 2**20
"""Largest tokenizer file that is read."""
BOM = b"\xef\xbb\xbf"


@contextmanager
def naming(name: object) -> Iterator[None]:
    """What is refused meanwhile is refused in the name of a file."""
    try:
        yield
    except TokenizerError as error:
        raise FileFormatError(f"{name}: {error}") from None


def decoded(raw: bytes, line: int = 1) -> str:
    """The text of bytes that begin in a ``line`` of a file; what is not UTF-8 is refused by its line."""
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise TokenizerError(f"line {line}: byte 0x{raw[error.start]:02X} is not UTF-8") from None


def read_text(path: Path) -> str:
    """The text of a tokenizer file, which may not be too large; a byte-order mark is dropped."""
    with path.open("rb") as file:
        raw = file.read(MAX_FILE_BYTES + 1)
    with naming(path):
        if len(raw) > MAX_FILE_BYTES:
            raise TokenizerError(f"more than {MAX_FILE_BYTES} bytes: no tokenizer file is so large")
        return decoded(raw.removeprefix(BOM))


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
        raise TokenizerError(f"key {twice!r} is given twice")
    return found


def load_json(text: str) -> dict[str, Any]:
    """A JSON object, with each key once."""
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise TokenizerError(f"line {error.lineno}: {error.msg}") from None
    except (RecursionError, ValueError) as error:
        # nested too deep, a key given twice, or an integer of thousands of digits
        raise TokenizerError(str(error)) from None
    if not isinstance(value, dict):
        raise TokenizerError(f"line 1: expected a JSON object, found {type(value).__name__}")
    return value


def read_gpt2(vocab_path: Path, merges_path: Path) -> tuple[Vocabulary, dict[str, int]]:
    """Vocabulary and special tokens of GPT-2's two files.

    They do not say which tokens are special: those that neither are a byte nor made by a merge, which could
    never come out of encoding.
    """
    vocab_text, merges_text = read_text(vocab_path), read_text(merges_path)
    with naming(vocab_path):
        vocab = load_json(vocab_text)
        check_ids(vocab)
    with naming(merges_path):
        merges = parse_merges(merges_text)
        made = check_merges(vocab, merges)
    special = {text: index for text, index in vocab.items() if text not in made}
    with naming(vocab_path):
        return make_vocabulary({text: vocab[text] for text in made}, merges), special


def parse_merges(text: str) -> list[Merge]:
    """The merges of a ``merges.txt``, lines ended as in Unix or in Windows."""
    merges = []
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise TokenizerError(f"line {number}: expected two parts, found {line[:60]!r}")
        merges.append((f"line {number}", left, right))
    return merges


def check_merges(vocab: Mapping[str, int], merges: list[Merge]) -> set[str]:
    """The tokens that are a byte or made by a merge, which must be most of the vocabulary.

    A merge may stand before those that make its parts, as in files made of tiktoken's.
    """
    made = {char for char in CHAR_TO_BYTE if char in vocab} | {left + right for _, left, right in merges}
    seen: set[tuple[str, str]] = set()
    for place, left, right in merges:
        for part in (left, right):
            if part not in made:
                raise TokenizerError(f"{place}: part {part[:60]!r} is no byte, and no merge makes it")
        if (left, right) in seen:
            raise TokenizerError(f"{place}: merge {left[:40]} {right[:40]} is given twice")
        if left + right not in vocab:
            raise TokenizerError(f"{place}: {(left + right)[:60]!r} is not in the vocabulary")
        seen.add((left, right))
    unmade = len(vocab) - len(made)
    if unmade > len(made):
        raise TokenizerError(f"{len(merges)} merges leave {unmade} of {len(vocab)} tokens unmade")
    return made


def make_vocabulary(
    vocab: Mapping[str, int], merges: list[Merge], *, whole_pieces: bool = False
) -> Vocabulary:
    """The vocabulary of printable tokens and of merges that were checked."""
    rows = [(vocab[left], vocab[right], vocab[left + right]) for _, left, right in merges]
    tokens = by_id({from_printable(text): index for text, index in vocab.items()})
    return Vocabulary(tokens, rows, whole_pieces=whole_pieces)


def check_ids(vocab: Mapping[Any, Any]) -> None:
    """Check that ids are integers, each given once and none far beyond the others."""
    owner: dict[int, Any] = {}
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index < 1 << 31:
            raise TokenizerError(f"token {token!r:.60} has id {index!r}, not an integer from 0 to 2^31 - 1")
        if index in owner:
            raise TokenizerError(f"id {index} belongs to {owner[index]!r:.60} and to {token!r:.60}")
        owner[index] = token
    if owner and max(owner) >= 4 * len(owner) + 1024:
        raise TokenizerError(f"id {max(owner)} is far beyond the {len(owner)} tokens")


def by_id(vocab: Mapping[bytes, int]) -> list[bytes | None]:
    """The token of each id; ``None`` at a gap."""
    tokens: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, index in vocab.items():
        tokens[index] = token
    return tokens
