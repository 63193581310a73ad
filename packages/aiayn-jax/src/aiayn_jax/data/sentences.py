"""Sentence pairs as token ids, by one byte-level BPE for both languages.

One special token, the end of text, closes every sentence and opens every translation. Being made of
bytes, the vocabulary has no unknown characters.

Shapes: n pairs, m tokens of one side.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import bpe_scratch
import numpy as np
from gpt_data.errors import InputError, naming
from jaxtyping import Bool, Int32, Int64

from aiayn_jax.data.pairs import TextPairs, shown_numbers

SENTENCES_AT_A_TIME = 1 << 16
"""Sentences that exist as strings at a time while they are encoded."""


class Side(NamedTuple):
    """Sentences of one language end to end.

    Attributes:
        ids: Token ids; every sentence ends with the end of text.
        starts: Where each sentence begins, and the end of the last.
    """

    ids: Int32[np.ndarray, " m"]
    starts: Int64[np.ndarray, " n+1"]

    @property
    def lengths(self) -> Int64[np.ndarray, " n"]:
        """Tokens of each sentence, its end included."""
        return np.diff(self.starts)


class TokenPairs(NamedTuple):
    """Sentence pairs as ids."""

    source: Side
    target: Side

    def __len__(self) -> int:
        return len(self.source.starts) - 1

    @property
    def sha256(self) -> str:
        """Digest of all ids and of where sentences begin."""
        digest = hashlib.sha256()
        for side in self[:]:
            for array in side:
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def learn_tokenizer(pairs: TextPairs, vocab_size: int, pattern: str) -> bpe_scratch.Tokenizer:
    """The joint BPE of both sides.

    Args:
        vocab_size: Number of ids at most; fewer if the text has no more merges to give.

    Raises:
        InputError: If ``vocab_size`` does not hold the bytes and the end of text.
    """
    with naming(f"--vocab {vocab_size}"):
        return bpe_scratch.train(chain(pairs.source, pairs.target), vocab_size, pattern=pattern)


def end_of_text(tokenizer: bpe_scratch.Tokenizer) -> int:
    """Id of the end of text.

    Raises:
        InputError: If the tokenizer has none.
    """
    if tokenizer.end_of_text is None:
        raise InputError("the tokenizer has no token <|endoftext|>")
    return tokenizer.end_of_text


def encode_side(tokenizer: bpe_scratch.Tokenizer, sentences: Sequence[str]) -> Side:
    """Encode sentences and close each with the end of text."""
    end, parts, lengths = np.int32(end_of_text(tokenizer)), [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    for first in range(0, len(sentences), SENTENCES_AT_A_TIME):
        ids, offsets = tokenizer.encode_to_numpy(list(sentences[first : first + SENTENCES_AT_A_TIME]))
        parts.append(np.insert(ids.astype(np.int32), offsets[1:], end))
        lengths.append(np.diff(offsets) + 1)
    return Side(np.concatenate(parts), np.concatenate(lengths).cumsum())


def encode_pairs(
    tokenizer: bpe_scratch.Tokenizer, pairs: TextPairs, longest: int, where: str
) -> tuple[TokenPairs, list[str]]:
    """Encode pairs; those with a side of more than ``longest`` tokens are left out, and said so.

    Returns:
        The ids, and a note if any pair was left out.

    Raises:
        InputError: If no pair is left.
    """
    both = TokenPairs(encode_side(tokenizer, pairs.source), encode_side(tokenizer, pairs.target))
    lengths = np.maximum(both.source.lengths, both.target.lengths)
    keep = lengths <= longest
    if keep.all():
        return both, []
    dropped = np.flatnonzero(~keep)
    numbers = shown_numbers([pairs.numbers[index] for index in dropped.tolist()], "number")
    note = (
        f"{where}: {len(dropped):,} of {len(pairs):,} pairs left out, longer than {longest} tokens "
        f"({numbers}; the longest has {lengths.max()})"
    )
    if not keep.any():
        raise InputError(f"{note}; raise --longest")
    return TokenPairs(_keep(both.source, keep), _keep(both.target, keep)), [note]


def _keep(side: Side, keep: Bool[np.ndarray, " n"]) -> Side:
    lengths = side.lengths
    starts = np.concatenate([[0], np.cumsum(lengths[keep])]).astype(np.int64)
    return Side(side.ids[np.repeat(keep, lengths)], starts)
