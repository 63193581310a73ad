"""Reading and writing files whole, checking a vocabulary against its merges, and GPT-2's two files."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bpe_scratch.byte_alphabet import CHAR_TO_BYTE, to_printable
from bpe_scratch.errors import FileFormatError, TokenizerError
from bpe_scratch.vocabulary import Vocabulary


class Parts(NamedTuple):
    """What a tokenizer file holds."""

    vocabulary: Vocabulary
    pattern: str  # a name or an expression
    special_tokens: Mapping[str, int]


def read_text(path: Path) -> str:
    """The text of a file, strictly UTF-8; a byte-order mark is dropped.

    Args:
        path: The file.

    Raises:
        FileFormatError: If a byte is not UTF-8, naming its line.
    """
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise FileFormatError(f"{path}: line {line}: byte 0x{raw[error.start]:02X} is not UTF-8") from None


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Args:
        path: The file; replaced if it exists.
        text: Its new text.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise FileFormatError(f"key {key!r} is given twice")
            seen.add(key)
    return found


def load_json(text: str, name: str) -> dict[str, Any]:
    """A JSON object, with each key once.

    Args:
        text: The JSON text.
        name: File name for messages.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"{name}: line {error.lineno}: {error.msg}") from None
    except FileFormatError as error:
        raise FileFormatError(f"{name}: {error}") from None
    except RecursionError:
        raise FileFormatError(f"{name}: nested too deep") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"{name}: line 1: expected a JSON object, found {type(value).__name__}")
    return value


def read_gpt2(vocab_path: Path, merges_path: Path) -> tuple[Vocabulary, dict[str, int]]:
    """Vocabulary and special tokens of GPT-2's two files.

    Args:
        vocab_path: JSON object from token to id.
        merges_path: One pair a line, perhaps after a ``#version`` line.
    """
    vocab = load_json(read_text(vocab_path), str(vocab_path))
    pairs = parse_merges(read_text(merges_path), str(merges_path))
    return build_vocabulary(vocab, pairs, str(vocab_path), str(merges_path))


def parse_merges(text: str, name: str) -> list[tuple[int, str, str]]:
    """``(line, left, right)`` of each merge.

    Args:
        text: Text of the file; Unix or Windows line ends.
        name: File name for messages.
    """
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
    vocab: Mapping[str, Any],
    merges: list[tuple[int, str, str]],
    vocab_name: str,
    merges_name: str,
    *,
    added: Mapping[str, int] | None = None,
    whole_pieces: bool = False,
    entry: str = "line",
) -> tuple[Vocabulary, dict[str, int]]:
    """Check a vocabulary and its merges against each other.

    Tokens that neither are a byte nor made by a merge can never come out of encoding: they are special. If
    most of them are, merges are missing, and that is an error.

    Args:
        vocab: Id of each token's text.
        merges: ``(line, left, right)`` of each merge.
        vocab_name: File of the vocabulary, for messages.
        merges_name: File of the merges, for messages.
        added: Special tokens with ids of their own, known beforehand.
        whole_pieces: As in :class:`Vocabulary`.
        entry: What ``line`` counts: a line or an entry.

    Returns:
        The vocabulary and the special tokens.
    """
    _check_ids(vocab, vocab_name)
    added = dict(added or {})
    made = {char for char in CHAR_TO_BYTE if char in vocab}
    seen: set[tuple[str, str]] = set()
    rows: list[tuple[int, int, int]] = []
    for number, left, right in merges:
        for part in (left, right):
            if part not in made:
                raise FileFormatError(f"{merges_name}: {entry} {number}: part {part[:60]!r} is not known yet")
        if (left, right) in seen:
            raise FileFormatError(
                f"{merges_name}: {entry} {number}: merge {left[:40]} {right[:40]} is given twice"
            )
        joined = left + right
        if joined not in vocab:
            raise FileFormatError(
                f"{merges_name}: {entry} {number}: {joined[:60]!r} is not in the vocabulary"
            )
        seen.add((left, right))
        made.add(joined)
        rows.append((vocab[left], vocab[right], vocab[joined]))
    special = {text: index for text, index in vocab.items() if text not in made} | added
    unmade = len(special) - len(added)
    if unmade > len(made):
        raise FileFormatError(
            f"{merges_name}: {len(merges)} merges leave {unmade} of {len(vocab)} tokens unmade"
        )
    tokens: list[bytes | None] = [None] * (max(vocab[text] for text in made) + 1 if made else 0)
    for text in made:
        if text not in added:
            tokens[vocab[text]] = bytes([CHAR_TO_BYTE[char] for char in text])
    try:
        return Vocabulary(tokens, rows, whole_pieces=whole_pieces), special
    except TokenizerError as error:
        raise FileFormatError(f"{vocab_name}: {error}") from None


def _check_ids(vocab: Mapping[str, Any], name: str) -> None:
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


def format_gpt2(parts: Parts) -> tuple[str, str]:
    """The texts of ``vocab.json`` and ``merges.txt``.

    Args:
        parts: What to write.
    """
    vocabulary = parts.vocabulary
    text = {index: to_printable(token) for index, token in enumerate(vocabulary.tokens) if token is not None}
    vocab = {token: index for index, token in text.items()} | dict(parts.special_tokens)
    rows = [f"{text[left]} {text[right]}\n" for left, right, _ in vocabulary.merges]
    return json.dumps(vocab, ensure_ascii=False) + "\n", "".join(["#version: 0.2\n", *rows])
