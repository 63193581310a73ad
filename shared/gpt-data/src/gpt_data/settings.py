"""What decides the shards besides source and tokenizer."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_data.errors import InputError
from gpt_data.parts import Part
from gpt_data.shards import MAX_SHARD_TOKENS

SHARD_TOKENS = 100_000_000
MAX_DOCUMENT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Settings:
    """What decides the shards besides source and tokenizer.

    Attributes:
        max_tokens: Each split ends with the document that brings it to this many tokens.
        shard_tokens: Tokens of a full shard.
        max_document_bytes: Largest document.
        only: The split that is wanted; both if None. The other is read and not encoded.
        part: The part of the source that is wanted; all of it if None.

    Raises:
        InputError: If a value is out of range.
    """

    max_tokens: int | None = None
    shard_tokens: int = SHARD_TOKENS
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    only: str | None = None
    part: Part | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InputError(f"max_tokens={self.max_tokens} is not positive")
        if not 1 <= self.shard_tokens <= MAX_SHARD_TOKENS:
            raise InputError(f"shard_tokens={self.shard_tokens} is not in [1, {MAX_SHARD_TOKENS}]")
        if self.max_document_bytes < 1:
            raise InputError(f"max_document_bytes={self.max_document_bytes} is not positive")
        if self.only is not None and self.max_tokens is not None:
            raise InputError("max_tokens counts training tokens, which only=... does not encode")

    def as_plan(self) -> dict[str, int | str | None]:
        """The settings as JSON; ``only`` and ``part`` stand there if they are given."""
        alone = {} if self.only is None else {"only": self.only}
        alone |= {} if self.part is None else {"part": str(self.part)}
        return alone | {
            "max_tokens": self.max_tokens,
            "shard_tokens": self.shard_tokens,
            "max_document_bytes": self.max_document_bytes,
        }
