"""Training: count the distinct words of a corpus, then learn merges from the counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bpe_scratch import incremental
from bpe_scratch.byte_alphabet import BYTES_IN_ID_ORDER, CHAR_TO_BYTE
from bpe_scratch.errors import TokenizerError
from bpe_scratch.layers import Layer, has_numba, tell_before_compiling
from bpe_scratch.patterns import refuse_lone_text, to_utf8
from bpe_scratch.special import END_OF_TEXT
from bpe_scratch.tokenizer import Tokenizer
from bpe_scratch.vocabulary import Vocabulary
from bpe_scratch.words import count_words, cut_out

BYTE_IDS = tuple(BYTES_IN_ID_ORDER.index(byte) for byte in range(256))


def train(
    documents: Iterable[str],
    vocab_size: int,
    *,
    pattern: str = "gpt2",
    special_tokens: Sequence[str] = (END_OF_TEXT,),
    min_frequency: int = 2,
    layer: Layer = "auto",
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
        layer: ``auto`` (kernels where they can) or ``reference``; the merges are the same.

    Raises:
        TokenizerError: If ``vocab_size`` leaves no room for the bytes and the special tokens, or a special
            token is the name of a single byte.
        TextError: If a document holds a lone surrogate.
        TypeError: If the documents are one text.
    """
    merges = _merges_wanted(vocab_size, special_tokens, min_frequency)
    words: Mapping[bytes, int] = count_words(documents, pattern, layer)
    for token in map(to_utf8, special_tokens):
        words = cut_out(token, words)
    vocabulary = learn(words, merges, min_frequency, layer)
    special = {text: i for i, text in enumerate(special_tokens, start=len(vocabulary.tokens))}
    return Tokenizer(vocabulary, pattern=pattern, special_tokens=special, layer=layer)


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


def learn(words: Mapping[bytes, int], merges: int, min_frequency: int, layer: Layer = "auto") -> Vocabulary:
    """Learn merges from words and their counts, up to 2^62 in all."""
    arguments = words, BYTE_IDS, merges, min_frequency
    if layer == "auto" and has_numba():
        from bpe_scratch.compiled.trainer import train_merges

        tell_before_compiling()
        known = Vocabulary.from_merges(train_merges(*arguments))
        # two pairs that make the same bytes share a token, whose counts can grow again: kernels rule that out
        if len(known.tokens) == 256 + len(known.merges):
            return known
    return Vocabulary.from_merges(incremental.train_merges(*arguments))
