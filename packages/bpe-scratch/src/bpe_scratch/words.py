"""The distinct words of a corpus, and how often each occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bpe_scratch.patterns import splitter, to_utf8

_BATCH = 1_000_000  # characters counted between two looks at the limit


class Words(NamedTuple):
    """Words one after another: word ``w`` is ``text[starts[w]:starts[w + 1]]``; empty ones count nothing."""

    text: npt.NDArray[np.uint8]
    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, words: Mapping[bytes, int]) -> Words:
        """The words of a dictionary."""
        starts = np.cumsum([0, *map(len, words)], dtype=np.int64)
        counts = np.fromiter(words.values(), np.int64, len(words))
        return cls(np.frombuffer(b"".join(words), dtype=np.uint8), starts, counts)

    def as_dict(self) -> dict[bytes, int]:
        """The count of each word."""
        raw, bounds = self.text.tobytes(), pairwise(self.starts.tolist())
        return {raw[a:b]: n for (a, b), n in zip(bounds, self.counts.tolist(), strict=True) if a < b}

    def without(self, token: bytes) -> Words:
        """The words without a token's bytes: what stands before and behind them are words of their own."""
        if token not in self.text.tobytes():
            return self
        parts: Counter[bytes] = Counter()
        for word, count in self.as_dict().items():
            for part in word.split(token):
                parts[part] += count
        return Words.of(parts)


class PlainCounter:
    """Counts with Python objects only."""

    def __init__(self, pattern: str) -> None:
        self._split = splitter(pattern)
        self._counts: Counter[bytes] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, documents: Iterable[str]) -> Iterator[int]:
        """Count the pieces of documents; yields now and then the number of documents read."""
        done = held = 0
        for done, document in enumerate(documents, start=1):
            to_utf8(document)
            self._counts.update(map(str.encode, self._split(document)))
            held += len(document)
            if held >= _BATCH:
                yield done
                held = 0
        yield done

    def forget(self, count: int) -> None:
        """Drop every word that was seen at most ``count`` times."""
        self._counts = Counter({word: seen for word, seen in self._counts.items() if seen > count})

    def words(self) -> Words:
        """The words in no particular order."""
        return Words.of(self._counts)
