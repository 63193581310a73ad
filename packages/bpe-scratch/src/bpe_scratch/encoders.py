"""The reference's encoder: pieces by regular expression, each distinct piece merged once and remembered."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from bpe_scratch.heap_merge import encode_piece
from bpe_scratch.patterns import splitter, to_utf8
from bpe_scratch.vocabulary import Vocabulary

# pieces remembered: about 100 MB of Python objects
_REMEMBERED, _LONGEST = 1 << 18, 64

IdArray = npt.NDArray[np.unsignedinteger[Any]]


class PlainEncoder:
    """Encodes with Python objects only."""

    def __init__(self, vocabulary: Vocabulary, pattern: str) -> None:
        self._vocabulary = vocabulary
        self._split = splitter(pattern)
        self._short = lru_cache(_REMEMBERED)(self._merge)

    def encode(self, text: str) -> list[int]:
        """The ids of a text without special tokens."""
        to_utf8(text)  # what has none is refused by its position in the text, not in a piece
        return [
            index
            for piece in self._split(text)
            for index in (self._short(piece) if len(piece) <= _LONGEST else self._merge(piece))
        ]

    def encode_array(self, texts: Sequence[str], lengths: npt.NDArray[np.int64], dtype: type) -> IdArray:
        """The ids of many texts; ``lengths`` receives the number of ids of each."""
        found = [self.encode(text) for text in texts]
        lengths[:] = list(map(len, found))
        return np.fromiter(chain.from_iterable(found), dtype, int(lengths.sum()))

    def _merge(self, piece: str) -> list[int]:
        vocabulary, raw = self._vocabulary, to_utf8(piece)
        whole = vocabulary.id_of_token.get(raw) if vocabulary.whole_pieces else None
        return encode_piece(raw, vocabulary.byte_ids, vocabulary.pairs) if whole is None else [whole]
