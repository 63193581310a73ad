"""What travels from the data to a model: token ids, targets and what each position may see.

Shapes: B rows, T positions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

IGNORE = -1
"""Target of a position that carries no loss."""


class Batch(NamedTuple):
    """B rows of T tokens, and what each position is to predict.

    A row with a prefix of P positions holds several continuations of it, one after the other: position
    t >= P sees the prefix, ``s < P``, and its own continuation, ``segment_starts[t] <= s <= t``, but no
    other one. Such a row may be longer than the model's context, since each continuation counts its
    positions from P on.

    Attributes:
        tokens: Token ids, each in ``[0, vocabulary)``.
        targets: The token that follows, or ``IGNORE`` where there is nothing to predict
            (the next token belongs to another document, or lies past the end).
        segment_starts: For each position, the index within its row of the first position of its
            document; position t attends to ``segment_starts[t] <= s <= t`` and to nothing else.
            ``None`` means that every row is one segment (all zeros).
        prefix_lengths: For each row, the length P of the prefix that its continuations share, for
            evaluation only; ``segment_starts`` are then given, 0 within the prefix and at least P behind
            it. ``None`` means that no row has one.
    """

    tokens: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    segment_starts: Int32[np.ndarray, "B T"] | None = None
    prefix_lengths: Int32[np.ndarray, " B"] | None = None

    @property
    def positions(self) -> Int32[np.ndarray, "B T"]:
        """Position of each token within its document piece, from 0: the row of ``wpe`` it gets."""
        rows, context = self.tokens.shape
        index = np.broadcast_to(np.arange(context, dtype=np.int32), (rows, context))
        if self.segment_starts is None:
            return index
        positions: np.ndarray = index - self.segment_starts
        if self.prefix_lengths is None:
            return positions
        prefix = self.prefix_lengths[:, None]
        shifted: np.ndarray = positions + np.where(index < prefix, np.int32(0), prefix)
        return shifted

    @property
    def target_count(self) -> int:
        """Number of positions that carry loss."""
        return int(np.count_nonzero(self.targets != IGNORE))

    def rows(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop`` as a batch of their own: one micro-batch."""
        return Batch(*(None if field is None else field[start:stop] for field in self))  # type: ignore[arg-type]
