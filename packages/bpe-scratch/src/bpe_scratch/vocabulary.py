"""Tokens and merges: what a trained tokenizer knows, checked once, never changed after."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from bpe_scratch.byte_alphabet import BYTES_IN_ID_ORDER
from bpe_scratch.errors import TokenizerError

Pair = tuple[int, int]


class Vocabulary:
    """The bytes of every token and the rules that build them.

    Attributes:
        tokens: Bytes of each id; ``None`` at ids that are unused or special.
        merges: ``(left, right, merged)`` ids, the strongest first.
        ranks: Rank of each merge; equal ranks are applied from left to right. The position in ``merges``
            unless given (tiktoken's files rank by the merged token).
        whole_pieces: Whether a piece that is a token as it stands skips the merges.
        byte_ids: Id of each single byte.
    """

    def __init__(
        self,
        tokens: Sequence[bytes | None],
        merges: Iterable[tuple[int, int, int]],
        *,
        ranks: Sequence[int] | None = None,
        whole_pieces: bool = False,
    ) -> None:
        self.tokens = tuple(tokens)
        self.merges = tuple(merges)
        self.ranks = tuple(range(len(self.merges))) if ranks is None else tuple(ranks)
        self.whole_pieces = whole_pieces
        ids = self.id_of_token
        if missing := [byte for byte in range(256) if bytes([byte]) not in ids]:
            raise TokenizerError(
                f"vocabulary has no token for byte 0x{missing[0]:02X} ({len(missing)} missing)"
            )
        if len(ids) < sum(token is not None for token in self.tokens):
            raise TokenizerError("two ids of the vocabulary stand for the same bytes")
        self.byte_ids = tuple(ids[bytes([byte])] for byte in range(256))

    @cached_property
    def id_of_token(self) -> dict[bytes, int]:
        """Id of each token's bytes."""
        return {token: index for index, token in enumerate(self.tokens) if token is not None}

    @cached_property
    def pairs(self) -> dict[Pair, tuple[int, int]]:
        """``(rank, merged id)`` of each pair that merges."""
        found = {
            (left, right): (rank, new)
            for (left, right, new), rank in zip(self.merges, self.ranks, strict=True)
        }
        if len(found) != len(self.merges):
            raise TokenizerError(f"{len(self.merges) - len(found)} merges are given twice")
        return found

    @classmethod
    def from_merges(cls, pairs: Iterable[Pair]) -> Vocabulary:
        """A vocabulary in training order: 256 bytes, then one id for each merge that makes a new token."""
        tokens = [bytes([byte]) for byte in BYTES_IN_ID_ORDER]
        ids = {token: index for index, token in enumerate(tokens)}
        merges = []
        for left, right in pairs:
            joined = tokens[left] + tokens[right]
            new = ids.setdefault(joined, len(tokens))
            if new == len(tokens):
                tokens.append(joined)
            merges.append((left, right, new))
        return cls(tokens, merges)
