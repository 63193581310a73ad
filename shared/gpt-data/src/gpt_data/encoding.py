"""Documents to tokens, in this process: chunks of documents, and their ids, each opened by the end of text.

Shapes: n tokens, d documents.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import bpe_scratch
import numpy as np
from jaxtyping import Int64, UInt

from gpt_data.errors import InputError
from gpt_data.sources import Document

CHUNK_CHARACTERS = 2**20
CHUNK_DOCUMENTS = 4096


class Chunk(NamedTuple):
    """Documents that are encoded together.

    Attributes:
        texts: The documents of each split; none is empty.
        characters: How many they have.
        next_document: Number in the source of the document after the last.
    """

    texts: dict[str, list[str]]
    characters: int
    next_document: int


class Encoded(NamedTuple):
    """Documents as tokens, each opened by the end-of-text token.

    Attributes:
        ids: The tokens of all documents, end to end.
        starts: Where each document begins, and the end of the last.
    """

    ids: UInt[np.ndarray, " n"]
    starts: Int64[np.ndarray, " d+1"]

    def first(self, documents: int) -> Encoded:
        """The first of the documents."""
        starts = self.starts[: documents + 1]
        return Encoded(self.ids[: starts[-1]], starts)


def chunks(documents: Iterable[Document], start: int) -> Iterator[Chunk]:
    """Cut a source into chunks of about a million characters; empty documents are left out."""
    texts: dict[str, list[str]] = {}
    characters = held = 0
    number = start
    for number, (split, text) in enumerate(documents, start + 1):
        if text:
            texts.setdefault(split, []).append(text)
            characters += len(text)
        held += 1
        if characters >= CHUNK_CHARACTERS or held >= CHUNK_DOCUMENTS:
            yield Chunk(texts, characters, number)
            texts, characters, held = {}, 0, 0
    yield Chunk(texts, characters, number)


def encode(tokenizer: bpe_scratch.Tokenizer, texts: list[str]) -> Encoded:
    """Encode documents, opening each by the end-of-text token; special text in them stays text.

    Raises:
        InputError: If a document is no valid Unicode.
    """
    assert tokenizer.end_of_text is not None, "build_tokenizer refuses these"
    try:
        ids, offsets = tokenizer.encode_to_numpy(texts)
    except ValueError as error:
        raise InputError(
            f"cannot encode one of {len(texts)} documents that begin with {texts[0][:40]!r}: {error}"
        ) from error
    framed = np.insert(ids, offsets[:-1], tokenizer.end_of_text)
    return Encoded(framed, offsets + np.arange(len(offsets)))
