"""The distinct words of a corpus, and how often each occurs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from bpe_scratch.layers import Layer, is_compiled, tell_before_compiling
from bpe_scratch.patterns import batches, refuse_lone_text, resolve_pattern, splitter, to_utf8

MAX_WORDS = 1 << 23
"""Distinct words held at most."""
_BATCH = 1_000_000  # characters counted between two looks at the limit


def count_words(documents: Iterable[str], pattern: str, layer: Layer = "auto") -> Counter[bytes]:
    """How often each distinct piece of the documents occurs.

    Once there are more than ``MAX_WORDS``, the pieces seen once are dropped, then those seen at most twice,
    four times, ... until at most half as many are left; a piece that comes again afterwards starts from zero.
    Below the limit counts are exact.
    """
    refuse_lone_text(documents)
    counts: Counter[bytes] = Counter()
    for counts in _counting(documents, pattern, layer):
        if len(counts) > MAX_WORDS:
            _forget_the_rarest(counts)
    return counts


def _counting(documents: Iterable[str], pattern: str, layer: Layer) -> Iterator[Counter[bytes]]:
    """One and the same counter, now and then, and when all is counted."""
    if not is_compiled(layer, pattern):
        return _count_plainly(documents, pattern)
    from bpe_scratch.compiled.counting import WordCounter

    tell_before_compiling()
    return WordCounter(resolve_pattern(pattern)).add(documents)


def _count_plainly(documents: Iterable[str], pattern: str) -> Iterator[Counter[bytes]]:
    split = splitter(pattern)
    counts: Counter[bytes] = Counter()
    for batch in batches(documents, _BATCH):
        for document in batch:
            to_utf8(document)
            counts.update(map(str.encode, split(document)))
        yield counts


def _forget_the_rarest(counts: Counter[bytes]) -> None:
    dropped = 1
    while len(counts) > MAX_WORDS // 2:
        for word in [word for word, seen in counts.items() if seen <= dropped]:
            del counts[word]
        dropped *= 2


def cut_out(token: bytes, words: Mapping[bytes, int]) -> Mapping[bytes, int]:
    """The words without a token's bytes: what stands before and behind them are words of their own."""
    if token not in b"".join(words):
        return words
    parts: Counter[bytes] = Counter()
    for word, count in words.items():
        for part in word.split(token):
            parts[part] += count
    return parts
