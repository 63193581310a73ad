"""Byte-level BPE from scratch: train, encode, decode."""

from __future__ import annotations

from bpe_scratch.decoders import TokenStream
from bpe_scratch.errors import FileFormatError, TextError, TokenIdError, TokenizerError
from bpe_scratch.patterns import PATTERNS
from bpe_scratch.tokenizer import Tokenizer
from bpe_scratch.training import count_words, train, train_from_counts
from bpe_scratch.vocabulary import Vocabulary

__all__ = [
    "PATTERNS",
    "FileFormatError",
    "TextError",
    "TokenIdError",
    "TokenStream",
    "Tokenizer",
    "TokenizerError",
    "Vocabulary",
    "count_words",
    "train",
    "train_from_counts",
]
