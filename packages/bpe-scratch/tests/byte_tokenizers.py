"""A tokenizer of single bytes, for any bytes at all."""

from __future__ import annotations

from bpe_scratch import Tokenizer

BYTES = Tokenizer(Tokenizer.from_bytes().vocabulary)


def byte_ids(raw: bytes) -> list[int]:
    return [BYTES.vocabulary.byte_ids[byte] for byte in raw]
