"""Which positions of a batch need the head, and how their scores find their way back.

A model's head is a product with the whole vocabulary. Where few positions have a target (the endings of
a question, the last word of a text), it is spent on those alone: ``target_index`` picks them on the host,
the backend scores what it picks, and ``spread`` puts the scores back where they belong.
Shapes: B rows, T positions, N positions picked.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Int32

from gpt_data.batch import IGNORE

SHARES = 8
"""Positions are picked in whole shares of all, one in so many: few programs for each shape."""

WORTHWHILE = 0.75
"""A larger part of all positions is not worth a gather."""


def target_index(targets: Int32[np.ndarray, "B T"]) -> Int32[np.ndarray, " N"] | None:
    """Positions with a target, in order, counted through all rows; ``None`` if most positions have one.

    Returns:
        The positions, filled up to one of a few lengths with position 0, since a compiled backend needs
        one program for each length.
    """
    found = np.flatnonzero(targets != IGNORE)
    share = -(-targets.size // SHARES)
    length = max(1, -(-len(found) // share)) * share
    if length > WORTHWHILE * targets.size:
        return None
    index = np.zeros(length, np.int32)
    index[: len(found)] = found
    return index


def spread(
    scores: Float32[np.ndarray, " N"], targets: Int32[np.ndarray, "B T"]
) -> Float32[np.ndarray, "B T"]:
    """Scores of the picked positions at their places, 0 where there is no target.

    Args:
        scores: One for each element of ``target_index(targets)``; for every position, if that is ``None``.
    """
    scored: Bool[np.ndarray, "B T"] = targets != IGNORE
    values = np.zeros(targets.shape, np.float32)
    everywhere = scores.size == targets.size
    values[scored] = scores[scored.ravel()] if everywhere else scores[: np.count_nonzero(scored)]
    return values
