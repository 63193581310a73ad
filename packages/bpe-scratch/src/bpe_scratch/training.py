"""Training: count the distinct words of a corpus, then learn merges from the counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from bpe_scratch.byte_alphabet import BYTES_IN_ID_ORDER
from bpe_scratch.errors import TokenizerError
from bpe_scratch.incremental import train_merges
from bpe_scratch.patterns import splitter, to_utf8
from bpe_scratch.tokenizer import END_OF_TEXT, Tokenizer
from bpe_scratch.vocabulary import Vocabulary

BYTE_IDS = tuple(BYTES_IN_ID_ORDER.index(byte) for byte in range(256))


def count_words(documents: Iterable[str], pattern: str = "gpt2") -> dict[bytes, int]:
    """How often each distinct piece occurs, in order of first sight.

    Args:
        documents: Texts; no piece crosses from one to the next.
        pattern: Name or expression.
    """
    split = splitter(pattern)
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(split(document))
    return {to_utf8(word): count for word, count in counts.items()}


def train(
    documents: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    min_frequency: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Tokenizer:
    """Learn a byte-level BPE.

    Ids: 256 bytes in GPT-2's order, then one per merge in the order learned, then the special tokens. Of pairs
    that occur equally often the one with the smaller ids goes first. Training stops early, with fewer ids, when
    no pair occurs ``min_frequency`` times.

    Args:
        documents: Texts, read once.
        vocab_size: Number of ids, everything counted.
        pattern: Pattern that cuts the texts into pieces, see :mod:`bpe_scratch.patterns`.
        special_tokens: Texts that get an id of their own and are never merged.
        min_frequency: Least count of a pair worth merging.
        on_progress: Called with merges learned and merges wanted.

    Raises:
        TokenizerError: If ``vocab_size`` leaves no room for the bytes and the special tokens.
        TextError: If a document holds a lone surrogate.
    """
    merges = vocab_size - 256 - len(special_tokens)
    if merges < 0 or len(set(special_tokens)) != len(special_tokens):
        raise TokenizerError(
            f"vocab_size={vocab_size} must hold 256 bytes and {len(special_tokens)} distinct special tokens"
        )
    if min_frequency < 1:
        raise TokenizerError(f"min_frequency={min_frequency} must be at least 1")
    words = count_words(documents, pattern)
    progress = None if on_progress is None else (lambda done: on_progress(done, merges))
    pairs = train_merges(words, BYTE_IDS, merges, min_frequency, progress)
    vocabulary = Vocabulary.from_merges(pairs)
    first = len(vocabulary.tokens)
    return Tokenizer(
        vocabulary, pattern=pattern, special_tokens={t: first + i for i, t in enumerate(special_tokens)}
    )
