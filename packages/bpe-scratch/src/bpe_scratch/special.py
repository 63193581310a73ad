"""Special tokens: texts with an id of their own, which are ordinary text until the caller allows them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import regex

from bpe_scratch.errors import TextError, TokenizerError
from bpe_scratch.patterns import to_utf8
from bpe_scratch.vocabulary import Vocabulary

END_OF_TEXT = "<|endoftext|>"


def check_special(special: Mapping[str, int], vocabulary: Vocabulary) -> dict[str, int]:
    """The special tokens in the order of their ids.

    Args:
        special: Id of each text.
        vocabulary: What they stand beside.

    Raises:
        TokenizerError: If a text is empty, or an id is negative or taken.
    """
    taken: dict[int, str] = {}
    for text, index in special.items():
        if not text:
            raise TokenizerError("a special token is empty")
        to_utf8(text)
        if (
            index < 0
            or (index < len(vocabulary.tokens) and vocabulary.tokens[index] is not None)
            or index in taken
        ):
            raise TokenizerError(f"special token {text!r} has id {index}, which is taken or negative")
        taken[index] = text
    return dict(sorted(special.items(), key=lambda item: item[1]))


def all_token_bytes(vocabulary: Vocabulary, special: Mapping[str, int]) -> list[bytes | None]:
    """The bytes of every id, special ones included; ``None`` at a gap.

    Args:
        vocabulary: The ordinary tokens.
        special: Id of each special token's text.
    """
    size = max([len(vocabulary.tokens), *(index + 1 for index in special.values())])
    table: list[bytes | None] = [*vocabulary.tokens, *[None] * (size - len(vocabulary.tokens))]
    for text, index in special.items():
        table[index] = to_utf8(text)
    return table


def split_special(
    text: str, special: Mapping[str, int], allowed: Collection[str]
) -> Iterator[tuple[str, int | None]]:
    """A text in parts: ``(special token, its id)``, or ``(ordinary text, None)``.

    Args:
        text: Any text.
        special: Id of each special token's text.
        allowed: Special tokens to recognise, the longest first where several match.

    Raises:
        TokenizerError: If one of ``allowed`` is not a special token.
    """
    unknown = [token for token in allowed if token not in special]
    if unknown:
        known = ", ".join(special) or "none"
        raise TokenizerError(f"allowed_special {unknown[0]!r} is not a special token; known: {known}")
    longest_first = sorted(allowed, key=lambda token: (-len(token), token))
    for part in regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text):
        if part:
            yield part, special[part] if part in allowed else None


def refuse_special_text(text: str, special: Mapping[str, int], allowed: Collection[str]) -> None:
    """Check that no special token but the allowed ones stands in a text.

    Args:
        text: Any text.
        special: Id of each special token's text.
        allowed: Those that may stand in it.

    Raises:
        TextError: Naming the token and its place.
    """
    for token in special:
        if token not in allowed and (position := text.find(token)) >= 0:
            raise TextError(f"special token {token!r} at character {position} is not allowed in text")
