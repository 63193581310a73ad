"""Training: count the distinct words of a corpus, then learn merges from the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from bpe_scratch import incremental
from bpe_scratch.byte_alphabet import BYTES_IN_ID_ORDER, CHAR_TO_BYTE
from bpe_scratch.errors import DuplicateTokenError, TokenizerError
from bpe_scratch.layers import Layer, has_numba, resolve_layer, tell_before_compiling
from bpe_scratch.patterns import refuse_lone_text, resolve_pattern, splitter, to_utf8
from bpe_scratch.special import END_OF_TEXT
from bpe_scratch.tokenizer import Tokenizer
from bpe_scratch.vocabulary import Pair, Vocabulary

BYTE_IDS = tuple(BYTES_IN_ID_ORDER.index(byte) for byte in range(256))
MAX_WORDS = 1 << 23
_BATCH = 1_000_000  # characters counted between two looks at the limit, by the reference


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


def train(
    documents: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    min_frequency: int = 2,
    layer: Layer = "auto",
    max_words: int = MAX_WORDS,
    on_documents: Callable[[int], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tokenizer:
    """Learn a byte-level BPE.

    Ids: 256 bytes in GPT-2's order, then one per merge in the order learned, then the special tokens. Of
    pairs that occur equally often the one with the smaller ids goes first. Training stops early, with fewer
    ids, when no pair occurs ``min_frequency`` times. Where a special token's text stands in a word, it is
    cut out before learning, so that no ordinary token can be it.

    Args:
        documents: Texts, read once.
        vocab_size: Number of ids, everything counted.
        pattern: Pattern that cuts the texts into pieces, see :mod:`bpe_scratch.patterns`.
        special_tokens: Texts that get an id of their own and are never merged.
        min_frequency: Least count of a pair worth merging.
        layer: ``auto``, ``compiled`` or ``reference``; the merges are the same.
        max_words: Distinct pieces to hold at most, see :func:`count_words`.
        on_documents: Called now and then with the number of documents read.
        on_progress: Called with merges learned and merges wanted.

    Raises:
        TokenizerError: If ``vocab_size`` leaves no room for the bytes and the special tokens, or a special
            token is the name of a single byte.
        TextError: If a document holds a lone surrogate.
        TypeError: If the documents are one text.
    """
    merges = _merges_wanted(vocab_size, special_tokens, min_frequency)
    words = count_words(documents, pattern, layer, max_words, on_documents)
    progress = None if on_progress is None else (lambda done: on_progress(done, merges))
    pairs = learn_merges(words, merges, min_frequency, special_tokens, layer, progress)
    vocabulary = Vocabulary.from_merges(pairs)
    special = {text: i for i, text in enumerate(special_tokens, start=len(vocabulary.tokens))}
    return Tokenizer(vocabulary, pattern=pattern, special_tokens=special, layer=layer)


def count_words(
    documents: Iterable[str],
    pattern: str,
    layer: Layer,
    max_words: int = MAX_WORDS,
    on_documents: Callable[[int], None] | None = None,
) -> Words | dict[bytes, int]:
    """How often each distinct piece of the documents occurs.

    Memory grows with the distinct pieces alone. Once there are more than ``max_words``, the pieces seen
    once are dropped, then those seen at most twice, four times, ... until at most half of ``max_words`` are
    left; a piece that comes again afterwards starts from zero. Below the limit counts are exact.
    """
    refuse_lone_text(documents)
    if max_words < 2:
        raise TokenizerError(f"max_words={max_words} must be at least 2")
    counter: Any
    if resolve_layer(layer, pattern) == "reference":
        counter = _PlainCounter(pattern)
    else:
        from bpe_scratch.compiled.counting import WordCounter

        tell_before_compiling()
        counter = WordCounter(resolve_pattern(pattern)[0] or "none")
    for done in counter.add(documents):
        dropped = 1
        while len(counter) > max_words // (1 if dropped == 1 else 2):
            counter.forget(dropped)
            dropped *= 2
        if on_documents is not None:
            on_documents(done)
    words: Words | dict[bytes, int] = counter.words()
    return words


def _merges_wanted(vocab_size: int, special_tokens: Sequence[str], min_frequency: int) -> int:
    refuse_lone_text(special_tokens)
    merges = vocab_size - 256 - len(special_tokens)
    if merges < 0 or len(set(special_tokens)) != len(special_tokens):
        raise TokenizerError(
            f"vocab_size={vocab_size} must hold 256 bytes and {len(special_tokens)} distinct special tokens"
        )
    bytes_too = [t for t in special_tokens if len(t) < 2 and (t.isascii() or t in CHAR_TO_BYTE)]
    if bytes_too:
        raise TokenizerError(f"special token {bytes_too[0]!r} is empty or also the name of a single byte")
    if min_frequency < 1:
        raise TokenizerError(f"min_frequency={min_frequency} must be at least 1")
    return merges


def learn_merges(
    words: Words | dict[bytes, int],
    merges: int,
    min_frequency: int,
    special_tokens: Sequence[str],
    layer: Layer,
    progress: Callable[[int], None] | None = None,
) -> list[Pair]:
    """Learn merges from words and their counts, up to 2^62 in all."""
    for token in map(to_utf8, special_tokens):
        words = _cut_out(words, token)
    if layer != "reference" and has_numba():
        from bpe_scratch.compiled.trainer import train_merges

        tell_before_compiling()
        arrays = words if isinstance(words, Words) else Words.of(words)
        try:
            return train_merges(arrays, np.array(BYTE_IDS, np.int32), merges, min_frequency, progress)
        except DuplicateTokenError:
            pass
    known = words.as_dict() if isinstance(words, Words) else words
    return incremental.train_merges(known, BYTE_IDS, merges, min_frequency, progress)


def _cut_out(words: Words | dict[bytes, int], token: bytes) -> Words | dict[bytes, int]:
    """The words without a token's bytes: what stands before and behind them are words of their own."""
    if isinstance(words, Words):
        if token not in words.text.tobytes():
            return words
        words = words.as_dict()
    parts: Counter[bytes] = Counter()
    for word, count in words.items():
        for part in word.split(token):
            parts[part] += count
    parts.pop(b"", None)
    return dict(parts)


class _PlainCounter:
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

    def words(self) -> dict[bytes, int]:
        """The count of each word."""
        return dict(self._counts)
