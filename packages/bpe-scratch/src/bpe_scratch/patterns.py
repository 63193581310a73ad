r"""Cutting text into pieces before BPE. Merges never cross a piece.

A pattern is named, or is any regular expression of the ``regex`` library. Text that an expression of the
caller's leaves unmatched becomes a piece of its own, so that nothing is ever lost.

The texts below match the same pieces in ``regex``, in Oniguruma (Hugging Face) and in fancy-regex
(tiktoken); possessive signs stand only where the three agree on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import regex

from bpe_scratch.errors import TextError, TokenizerError

PATTERNS: dict[str, str | None] = {
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s++$|\s*[\r\n]+|\s+(?!\S)|\s+",
    "o200k": r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "whitespace": r" ?\S+|\s+(?!\S)|\s+",
    "none": None,
}
ALIASES = {"gpt4": "cl100k", "gpt4o": "o200k"}


def resolve_pattern(pattern: str) -> tuple[str | None, str | None]:
    """Name and expression of a pattern.

    Args:
        pattern: A key of ``PATTERNS`` or ``ALIASES``, or a regular expression.

    Returns:
        ``(name, expression)``; the name is ``None`` for an expression of the caller's, the expression is
        ``None`` where text is not cut at all.

    Raises:
        TokenizerError: If the expression does not compile or can match nothing.
    """
    name = ALIASES.get(pattern, pattern)
    if name in PATTERNS:
        return name, PATTERNS[name]
    for known, expression in PATTERNS.items():
        if expression == pattern:
            return known, expression
    try:
        compiled = regex.compile(pattern)
    except (regex.error, RecursionError, OverflowError) as error:
        known_names = ", ".join([*PATTERNS, *ALIASES])
        raise TokenizerError(
            f"pattern {pattern[:80]!r} is neither one of {known_names} nor valid: {error}"
        ) from None
    if compiled.fullmatch(""):
        raise TokenizerError(f"pattern {pattern[:80]!r} matches the empty text, so it cannot cut")
    return None, pattern


def splitter(pattern: str) -> Callable[[str], list[str]]:
    """A function that cuts a text into pieces whose concatenation is the text.

    Args:
        pattern: As in :func:`resolve_pattern`.
    """
    name, expression = resolve_pattern(pattern)
    if expression is None:
        return lambda text: [text] if text else []
    compiled = regex.compile(expression)
    if name is not None:
        return lambda text: compiled.findall(text)
    return lambda text: list(_matches_and_gaps(compiled, text))


def _matches_and_gaps(compiled: regex.Pattern[str], text: str) -> Iterator[str]:
    end = 0
    for match in compiled.finditer(text):
        if match.start() > end:
            yield text[end : match.start()]
        if match.end() > match.start():
            yield match.group()
        end = match.end()
    if end < len(text):
        yield text[end:]


def to_utf8(text: str) -> bytes:
    """The UTF-8 form of a text; lone surrogates have none and are refused, in training as in encoding.

    Args:
        text: Any text.

    Raises:
        TextError: Naming the position of the first surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        raise TextError(f"lone surrogate U+{code:04X} at character {error.start} has no UTF-8 form") from None
