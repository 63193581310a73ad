"""Byte-level BPE from scratch: train, encode, decode."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpe_scratch.decoders import TokenStream
    from bpe_scratch.errors import FileFormatError, TextError, TokenIdError, TokenizerError, WriteError
    from bpe_scratch.patterns import PATTERNS
    from bpe_scratch.tokenizer import Tokenizer
    from bpe_scratch.training import train
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
    "WriteError",
    "train",
]

_HOMES = {
    "PATTERNS": "patterns",
    "TokenStream": "decoders",
    "Tokenizer": "tokenizer",
    "Vocabulary": "vocabulary",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    # imported when first asked for: the command answers Ctrl-C before NumPy is loaded
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"bpe_scratch.{_HOMES.get(name, 'errors')}"), name)
