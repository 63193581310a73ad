"""A split as one long stream of tokens, read by position from its shards.

Shapes: n tokens, d documents.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64

from gpt_data.errors import InputError
from gpt_data.shards import Shard, read_documents


class TokenStream:
    """The shards of one split, end to end.

    Args:
        vocab_size: Every id is below this.
        documents: For each shard its ``.docs`` file; None if there are none, and documents are then
            found at the end-of-text tokens.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[Shard],
        *,
        vocab_size: int,
        end_of_text: int,
        documents: Sequence[Path] | None = None,
    ) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.end_of_text = end_of_text
        self._shards = list(shards)
        self._documents = None if documents is None else list(documents)
        self._starts: dict[int, Int64[np.ndarray, " d"]] = {}
        self._ends = list(accumulate(shard.tokens for shard in self._shards))
        self.tokens = self._ends[-1] if self._ends else 0

    def read(self, start: int, stop: int) -> Int32[np.ndarray, " n"]:
        """Tokens ``start`` to ``stop`` of the stream, each checked against the vocabulary.

        Raises:
            InputError: If a shard was cut or holds an id outside the vocabulary.
            ValueError: If the range does not lie within the stream.
        """
        pieces = [shard.read(a, b) for shard, a, b, _ in self._pieces(start, stop)]
        ids = pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, np.int32), *pieces])
        if ids.size and int(ids.max()) >= self.vocab_size:
            self._refuse(start, ids)
        return ids

    def document_starts(self, start: int, stop: int) -> Int64[np.ndarray, " d"]:
        """Positions in ``start`` to ``stop`` at which a document begins, ascending.

        Raises:
            InputError: As ``read``, or if a file of document offsets is damaged.
            ValueError: If the range does not lie within the stream.
        """
        if self._documents is None:
            return start + np.flatnonzero(self.read(start, stop) == self.end_of_text)
        found = [np.empty(0, np.int64)]
        for shard, a, b, base in self._pieces(start, stop):
            starts = self._starts_of(self._shards.index(shard))
            low, high = np.searchsorted(starts, (a, b))
            found.append(starts[low:high] + base)
        return np.concatenate(found)

    def close(self) -> None:
        """Close every shard."""
        for shard in self._shards:
            shard.close()

    def _starts_of(self, index: int) -> Int64[np.ndarray, " d"]:
        if index not in self._starts:
            assert self._documents is not None
            self._starts[index] = read_documents(self._documents[index], self._shards[index].tokens)
        return self._starts[index]

    def _pieces(self, start: int, stop: int) -> list[tuple[Shard, int, int, int]]:
        """Shard, first and last position within it, and the shard's place in the stream."""
        if not 0 <= start <= stop <= self.tokens:
            raise ValueError(
                f"tokens {start} to {stop} do not lie within the {self.tokens} of split {self.name}"
            )
        pieces = []
        index = bisect_right(self._ends, start)
        while start < stop:
            shard, base = self._shards[index], self._ends[index] - self._shards[index].tokens
            end = min(stop, self._ends[index])
            if end > start:
                pieces.append((shard, start - base, end - base, base))
            start, index = end, index + 1
        return pieces

    def _refuse(self, start: int, ids: Int32[np.ndarray, " n"]) -> None:
        at = start + int(np.argmax(ids >= self.vocab_size))
        ((shard, inside, _, _),) = self._pieces(at, at + 1)
        raise InputError(
            f"{shard.path} holds token id {ids[at - start]} at position {inside}, "
            f"outside the vocabulary of {self.vocab_size}"
        )
