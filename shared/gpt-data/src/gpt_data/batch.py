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

    Attributes:
        tokens: Token ids, each in ``[0, vocabulary)``.
        targets: The token that follows, or ``IGNORE`` where there is nothing to predict
            (the next token belongs to another document, or lies past the end).
        segment_starts: For each position, the index within its row of the first position of its
            document; position t attends to ``segment_starts[t] <= s <= t`` and to nothing else.
            ``None`` means that every row is one segment (all zeros).
    """

    tokens: Int32[np.ndarray, "B T"]
    targets: Int32[np.ndarray, "B T"]
    segment_starts: Int32[np.ndarray, "B T"] | None = None

    @property
    def positions(self) -> Int32[np.ndarray, "B T"]:
        """Position of each token within its document piece, from 0: the row of ``wpe`` it gets."""
        rows, context = self.tokens.shape
        index = np.broadcast_to(np.arange(context, dtype=np.int32), (rows, context))
        if self.segment_starts is None:
            return index
        positions: np.ndarray = index - self.segment_starts
        return positions

    @property
    def target_count(self) -> int:
        """Number of positions that carry loss."""
        return int(np.count_nonzero(self.targets != IGNORE))

    def rows(self, start: int, stop: int) -> Batch:
        """Rows ``start`` to ``stop`` as a batch of their own: one micro-batch."""
        return Batch(*(None if field is None else field[start:stop] for field in self))  # type: ignore[arg-type]
