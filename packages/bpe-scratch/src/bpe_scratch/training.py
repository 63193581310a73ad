"""Training: count the distinct words of a corpus, then learn merges from the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import chain, pairwise
from multiprocessing import get_context
from typing import Any

import numpy as np

from bpe_scratch import array_trainer, incremental
from bpe_scratch.array_counting import piece_counter
from bpe_scratch.byte_alphabet import BYTES_IN_ID_ORDER
from bpe_scratch.errors import DuplicateTokenError, TokenizerError
from bpe_scratch.layers import Layer, resolve_layer, tell_before_compiling
from bpe_scratch.patterns import resolve_pattern
from bpe_scratch.special import END_OF_TEXT
from bpe_scratch.tokenizer import Tokenizer
from bpe_scratch.vocabulary import Pair, Vocabulary

BYTE_IDS = tuple(BYTES_IN_ID_ORDER.index(byte) for byte in range(256))
MAX_WORDS = 1 << 23
_PROCESS_BATCH = 4_000_000  # characters sent to a counting process at once
_ARRAY_BATCH = 1_000_000  # characters cut at once without Numba


def count_words(
    documents: Iterable[str],
    pattern: str = "gpt2",
    *,
    layer: Layer = "auto",
    workers: int = 1,
    max_words: int = MAX_WORDS,
    on_documents: Callable[[int], None] | None = None,
) -> dict[bytes, int]:
    """How often each distinct piece occurs.

    Memory grows with the distinct pieces alone. Once there are more than ``max_words``, the pieces seen
    once are dropped, then those seen at most twice, four times, ... until at most half of ``max_words`` are
    left; a piece that comes again afterwards starts from zero. Below the limit counts are exact.

    Args:
        documents: Texts; no piece crosses from one to the next.
        pattern: Name or expression.
        layer: ``auto``, ``compiled`` or ``arrays``.
        workers: Processes that count; the counts do not depend on it below the limit.
        max_words: Distinct pieces to hold at most.
        on_documents: Called now and then with the number of documents read.

    Raises:
        TextError: If a document holds a lone surrogate.
    """
    counter = _count(documents, pattern, layer, workers, max_words, on_documents)
    if isinstance(counter, Counter):
        return dict(counter)
    text, starts, counts = counter.words()
    raw, bounds = text.tobytes(), starts.tolist()
    return {raw[a:b]: count for (a, b), count in zip(pairwise(bounds), counts.tolist(), strict=True)}


def train(
    documents: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    min_frequency: int = 2,
    layer: Layer = "auto",
    workers: int = 1,
    max_words: int = MAX_WORDS,
    on_documents: Callable[[int], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tokenizer:
    """Learn a byte-level BPE.

    Ids: 256 bytes in GPT-2's order, then one per merge in the order learned, then the special tokens. Of
    pairs that occur equally often the one with the smaller ids goes first. Training stops early, with fewer
    ids, when no pair occurs ``min_frequency`` times.

    Args:
        documents: Texts, read once.
        vocab_size: Number of ids, everything counted.
        pattern: Pattern that cuts the texts into pieces, see :mod:`bpe_scratch.patterns`.
        special_tokens: Texts that get an id of their own and are never merged.
        min_frequency: Least count of a pair worth merging.
        layer: ``auto``, ``compiled`` or ``arrays``; the merges are the same.
        workers: As in :func:`count_words`.
        max_words: As in :func:`count_words`.
        on_documents: As in :func:`count_words`.
        on_progress: Called with merges learned and merges wanted.

    Raises:
        TokenizerError: If ``vocab_size`` leaves no room for the bytes and the special tokens.
        TextError: If a document holds a lone surrogate.
    """
    merges = _merges_wanted(vocab_size, special_tokens, min_frequency)
    counter = _count(documents, pattern, layer, workers, max_words, on_documents)
    progress = None if on_progress is None else (lambda done: on_progress(done, merges))
    return _finish(_learn(counter, merges, min_frequency, progress), pattern, special_tokens, layer)


def train_from_counts(
    words: Mapping[bytes, int],
    vocab_size: int,
    *,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    min_frequency: int = 2,
    layer: Layer = "auto",
) -> Tokenizer:
    """Learn a byte-level BPE from words already counted, as by :func:`count_words`.

    Args:
        words: Distinct words and their counts, up to 2^62 in all.
        vocab_size: Number of ids, everything counted.
        pattern: Pattern that the words were cut with.
        special_tokens: As in :func:`train`.
        min_frequency: As in :func:`train`.
        layer: As in :func:`train`.
    """
    merges = _merges_wanted(vocab_size, special_tokens, min_frequency)
    bad = next((word for word, count in words.items() if count < 0), None)
    if bad is not None or sum(words.values()) * max(map(len, words), default=0) >= 1 << 62:
        raise TokenizerError(f"word counts must be from 0 to 2^62 in all; first negative: {bad!r}")
    if resolve_layer(layer, pattern) == "compiled":
        from bpe_scratch.compiled.counting import WordCounter

        counter = WordCounter("none")
        counter.add_bytes(list(words), np.array(list(words.values()), dtype=np.int64), whole=True)
        return _finish(_learn(counter, merges, min_frequency, None), pattern, special_tokens, layer)
    return _finish(_learn_plain(words, merges, min_frequency, None), pattern, special_tokens, layer)


def _merges_wanted(vocab_size: int, special_tokens: Sequence[str], min_frequency: int) -> int:
    merges = vocab_size - 256 - len(special_tokens)
    if merges < 0 or len(set(special_tokens)) != len(special_tokens):
        raise TokenizerError(
            f"vocab_size={vocab_size} must hold 256 bytes and {len(special_tokens)} distinct special tokens"
        )
    if min_frequency < 1:
        raise TokenizerError(f"min_frequency={min_frequency} must be at least 1")
    return merges


def _finish(pairs: list[Pair], pattern: str, special_tokens: Sequence[str], layer: Layer) -> Tokenizer:
    vocabulary = Vocabulary.from_merges(pairs)
    first = len(vocabulary.tokens)
    special = {text: first + i for i, text in enumerate(special_tokens)}
    return Tokenizer(vocabulary, pattern=pattern, special_tokens=special, layer=layer)


def _learn(
    counter: Any, merges: int, min_frequency: int, progress: Callable[[int], None] | None
) -> list[Pair]:
    if isinstance(counter, Counter):
        return _learn_plain(counter, merges, min_frequency, progress)
    from bpe_scratch.compiled import trainer

    tell_before_compiling("learning", "learn")
    arrays = counter.words()
    counter.clear()
    try:
        return trainer.train_merges(arrays, np.array(BYTE_IDS, np.int32), merges, min_frequency, progress)
    except DuplicateTokenError:
        text, starts, counts = arrays
        words = {text[a:b].tobytes(): int(n) for a, b, n in zip(starts, starts[1:], counts, strict=False)}
        return incremental.train_merges(words, BYTE_IDS, merges, min_frequency, progress)


def _learn_plain(
    words: Mapping[bytes, int], merges: int, min_frequency: int, progress: Callable[[int], None] | None
) -> list[Pair]:
    try:
        return array_trainer.train_merges(words, BYTE_IDS, merges, min_frequency, progress)
    except DuplicateTokenError:
        return incremental.train_merges(words, BYTE_IDS, merges, min_frequency, progress)


def _count(
    documents: Iterable[str],
    pattern: str,
    layer: Layer,
    workers: int,
    max_words: int,
    on_documents: Callable[[int], None] | None,
) -> Any:
    if workers < 1 or max_words < 2:
        raise TokenizerError(f"workers={workers} must be at least 1 and max_words={max_words} at least 2")
    if resolve_layer(layer, pattern) == "arrays":
        return _count_plain(documents, pattern, max_words, on_documents)
    from bpe_scratch.compiled.counting import WordCounter

    tell_before_compiling("counting", "count_documents")
    counter = WordCounter(resolve_pattern(pattern)[0] or "none")
    steps = (
        counter.add(documents) if workers == 1 else _count_in_processes(counter, documents, pattern, workers)
    )
    for done in steps:
        dropped = 1
        while len(counter) > max_words // (1 if dropped == 1 else 2):
            counter.forget(dropped)
            dropped *= 2
        if on_documents is not None:
            on_documents(done)
    return counter


def _count_plain(
    documents: Iterable[str], pattern: str, max_words: int, on_documents: Callable[[int], None] | None
) -> Counter[bytes]:
    counts: Counter[bytes] = Counter()
    count = piece_counter(pattern)
    done = 0
    for batch in _batches(documents, _ARRAY_BATCH):
        counts.update(count(batch))
        done += len(batch)
        dropped = 1
        while len(counts) > max_words // (1 if dropped == 1 else 2):
            counts = Counter({word: count for word, count in counts.items() if count > dropped})
            dropped *= 2
        if on_documents is not None:
            on_documents(done)
    return counts


def _batches(documents: Iterable[str], characters: int) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _count_batch(pattern: str, batch: list[str]) -> tuple[int, list[bytes], np.ndarray]:
    from bpe_scratch.compiled.counting import WordCounter

    counter = WordCounter(pattern)
    for _ in counter.add(batch):
        pass
    text, starts, counts = counter.words()
    raw, bounds = text.tobytes(), starts.tolist()
    return len(batch), [raw[a:b] for a, b in pairwise(bounds)], counts


def _count_in_processes(counter: Any, documents: Iterable[str], pattern: str, workers: int) -> Iterator[int]:
    """Documents go out in batches, counts come back.

    At most twice as many batches as processes are under way.
    """
    name, done = resolve_pattern(pattern)[0] or "none", 0
    running: list[Future[tuple[int, list[bytes], np.ndarray]]] = []
    # spawn: forking a process that has threads may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for batch in chain(_batches(documents, _PROCESS_BATCH), [None]):
            if batch is not None:
                running.append(pool.submit(_count_batch, name, batch))
            while running and (batch is None or len(running) >= 2 * workers):
                number, words, counts = running.pop(0).result()
                counter.add_bytes(words, counts, whole=True)
                done += number
                yield done
