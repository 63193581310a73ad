"""A tokenizer of single bytes, for any bytes at all."""

from __future__ import annotations

from typing import Any

import pytest
from bpe_scratch import Tokenizer

# more ids than are joined without a kernel
PAD = b"x" * 70


def byte_ids(raw: bytes) -> list[int]:
    table = Tokenizer.from_bytes().vocabulary.byte_ids
    return [table[byte] for byte in raw]


def byte_tokenizer(layer: Any = "auto", block: int | None = None) -> Tokenizer:
    """A tokenizer of single bytes, decoding in blocks of so many or of the usual number."""
    tokenizer = Tokenizer(Tokenizer.from_bytes().vocabulary, layer=layer)
    with pytest.MonkeyPatch.context() as patch:
        if block:
            patch.setattr(pytest.importorskip("bpe_scratch.compiled.decoder"), "_BLOCK", block)
        # tables are made when they are first needed
        tokenizer.decode(byte_ids(PAD))
    return tokenizer


# 8: characters are cut off at the end of nearly every block
any_block = pytest.mark.parametrize("block", [None, 8])
