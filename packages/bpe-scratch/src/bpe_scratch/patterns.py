r"""Cutting text into pieces before BPE. Merges never cross a piece.

A pattern is named, or is a regular expression (see :mod:`bpe_scratch.expressions`). Text that an own
expression leaves unmatched becomes a piece of its own, so that nothing is ever lost.

The texts below match the same pieces in ``regex``, in Oniguruma (Hugging Face) and in fancy-regex
(tiktoken); possessive signs stand only where the three agree on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import regex

from bpe_scratch.errors import TextError, TokenizerError
from bpe_scratch.expressions import compile_expression

_T = TypeVar("_T", bound=Any)
PATTERNS: dict[str, str | None] = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s++$|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "none": None,
}


def resolve_pattern(pattern: str) -> str:
    """The name of a pattern, a key of ``PATTERNS``; an own expression as it is.

    Raises:
        TokenizerError: If it is neither a name nor an expression that can be used.
    """
    for name, expression in PATTERNS.items():
        if pattern in (name, expression):
            return name
    if pattern.replace("-", "_").isidentifier():
        raise TokenizerError(f"pattern {pattern!r} is none of {', '.join(PATTERNS)}")
    to_utf8(pattern)
    compile_expression(pattern)
    return pattern


def splitter(pattern: str) -> Callable[[str], list[str]]:
    """A function that cuts a text into pieces whose concatenation is the text."""
    name = resolve_pattern(pattern)
    expression = PATTERNS.get(name, name)
    if expression is None:
        return lambda text: [text] if text else []
    compiled = compile_expression(expression)
    return compiled.findall if name in PATTERNS else lambda text: list(_matches_and_gaps(compiled, text))


def _matches_and_gaps(compiled: regex.Pattern[str], text: str) -> Iterator[str]:
    end = 0
    for match in compiled.finditer(text):
        if match.start() > end:
            yield text[end : match.start()]
        yield match.group()
        end = match.end()
    if end < len(text):
        yield text[end:]


def to_utf8(text: str) -> bytes:
    """The UTF-8 form of a text; lone surrogates have none and are refused, in training as in encoding.

    Raises:
        TextError: Naming the position of the first surrogate.
    """
    try:
        # a subclass may encode otherwise than it is
        return str.encode(text, "utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise TextError(f"lone surrogate U+{code:04X} at character {error.start} has no UTF-8 form") from None


def batches(items: Iterable[_T], size: int, length: Callable[[_T], int] = len) -> Iterator[list[_T]]:
    """Some items at a time, as many as reach a size together; the last ones as they are."""
    batch: list[_T] = []
    held = 0
    for item in items:
        batch.append(item)
        held += length(item)
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def refuse_lone_text(texts: object) -> None:
    """Check that texts are many: a lone one would be taken apart into characters.

    Raises:
        TypeError: If it is one text.
    """
    if isinstance(texts, (str, bytes)):
        raise TypeError(f"expected texts, one after another, and found one text: {texts[:40]!r}; give [text]")
