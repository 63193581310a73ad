"""Special tokens: texts with an id of their own, which are ordinary text until the caller allows them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import regex

from bpe_scratch.byte_alphabet import CHAR_TO_BYTE, from_printable
from bpe_scratch.errors import TokenizerError
from bpe_scratch.patterns import to_utf8
from bpe_scratch.vocabulary import Vocabulary

END_OF_TEXT = "<|endoftext|>"


def check_special(special: Mapping[str, int], vocabulary: Vocabulary) -> dict[str, int]:
    """The special tokens in the order of their ids.

    Raises:
        TokenizerError: If a text is empty or an ordinary token's, or would be in a file that takes pieces
            whole; or if an id is negative or taken.
    """
    taken: dict[int, str] = {}
    for text, index in special.items():
        if not text:
            raise TokenizerError("a special token is empty")
        # a file holds tokens in printable stand-ins, and each text once
        own = to_utf8(text)
        named = from_printable(text) if CHAR_TO_BYTE.keys() >= set(text) else own
        for token in (own, named):
            if token in vocabulary.id_of_token:
                other = vocabulary.id_of_token[token]
                raise TokenizerError(f"special token {text!r} is also the ordinary token {other}, {token!r}")
        if vocabulary.whole_pieces and named != own:
            raise TokenizerError(f"special token {text!r} is written as {named!r}, and may be a whole piece")
        ordinary = index < len(vocabulary.tokens) and vocabulary.tokens[index] is not None
        if index < 0 or ordinary or index in taken:
            raise TokenizerError(f"special token {text!r} has id {index}, which is taken or negative")
        taken[index] = text
    return dict(sorted(special.items(), key=lambda item: item[1]))


def check_allowed(allowed: Collection[str], special: Mapping[str, int]) -> Collection[str]:
    """The special tokens that may be recognised: all of them for ``"all"``.

    Raises:
        TypeError: If another text stands in place of a collection of texts.
        TokenizerError: If one of ``allowed`` is not a special token.
    """
    if isinstance(allowed, str):
        if allowed != "all":
            raise TypeError(f"allowed_special={allowed!r} is one text: give a set of texts, or 'all'")
        return special.keys()
    unknown = [token for token in allowed if token not in special]
    if unknown:
        known = ", ".join(special) or "none"
        raise TokenizerError(f"allowed_special {unknown[0]!r} is not a special token; known: {known}")
    return allowed


def split_special(
    text: str, special: Mapping[str, int], allowed: Collection[str]
) -> Iterator[tuple[str, int | None]]:
    """A text in parts, the longest token first where several match.

    A part is ``(special token, its id)``, or ``(ordinary text, None)``.
    """
    longest_first = sorted(allowed, key=len, reverse=True)
    for part in regex.split("(" + "|".join(map(regex.escape, longest_first)) + ")", text):
        if part:
            yield part, special[part] if part in allowed else None
