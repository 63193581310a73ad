"""From logits to one token per row: temperature, top-k, top-p.

Shapes: B rows, V vocabulary, k tokens that may be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Int32

BLOCK = 64
"""Neighbours in a vocabulary, of which the likeliest alone is looked at to find how likely others must be."""


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn.

    Attributes:
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Draw from this many most likely tokens; None for all.
        top_p: Draw from the fewest most likely tokens that together have this probability.
        seed: Key of the random numbers.

    Raises:
        ValueError: If a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} is not in [0, infinity)")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} is not positive")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p} is not in (0, 1]")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed={self.seed} is not in [0, 2^64)")


def candidates(
    logits: Float[np.ndarray, "B V"], config: SamplingConfig
) -> tuple[Int[np.ndarray, "B k"], Float64[np.ndarray, "B k"]]:
    """The tokens that may be drawn, by id, and their probabilities; all others have none.

    First the temperature, then exactly ``top_k`` tokens are kept, then of these the fewest whose
    probabilities, renormalized, reach ``top_p``; at least one. Of equal logits the lower id comes first.

    References:
        Holtzman et al. 2020, section 3.1 (top-p).
    """
    tokens = _likeliest(logits, 1 if config.temperature == 0.0 else config.top_k)
    values = np.take_along_axis(logits, tokens, axis=1).astype(np.float64)
    # at a temperature near zero the distance overflows to -inf, whose exponential is the 0 that it should be
    with np.errstate(over="ignore"):
        weights = np.exp((values - values.max(axis=1, keepdims=True)) / (config.temperature or 1.0))
    weights /= weights.sum(axis=1, keepdims=True)
    if config.top_p < 1.0:
        order = np.argsort(-values, axis=1, kind="stable")
        ranked = np.take_along_axis(weights, order, axis=1)
        # a token stays if those before it have not reached top_p yet
        ranked[np.cumsum(ranked, axis=1) - ranked >= config.top_p] = 0.0
        np.put_along_axis(weights, order, ranked / ranked.sum(axis=1, keepdims=True), axis=1)
    return tokens, weights


def _likeliest(logits: Float[np.ndarray, "B V"], count: int | None) -> Int[np.ndarray, "B k"]:
    """The ``count`` most likely tokens of each row, by id; all if ``None``; of equal logits the lower ids.

    To sort a whole vocabulary takes milliseconds, more than a small model takes for a token.
    """
    rows, vocabulary = logits.shape
    if count is None or count >= vocabulary:
        return np.tile(np.arange(vocabulary), (rows, 1))
    found = []
    for row in -logits:
        least = np.minimum.reduceat(row, np.arange(0, vocabulary, BLOCK))
        # so many blocks have a token that is as likely: none is missed
        limit = np.partition(least, count - 1)[count - 1] if count <= len(least) else np.inf
        few = np.flatnonzero(~(row > limit))
        found.append(np.sort(few[np.argsort(row[few], kind="stable")[:count]]))
    return np.stack(found)


class Sampler:
    """Draws one token per row and step; row r's draws depend on the seed and r alone."""

    def __init__(self, config: SamplingConfig, rows: int) -> None:
        self.config = config
        self._streams = [
            np.random.Generator(np.random.Philox(key=np.array([config.seed, row], np.uint64)))
            for row in range(rows)
        ]

    def draw(self, logits: Float32[np.ndarray, "B V"]) -> Int32[np.ndarray, " B"]:
        """The next token of each row."""
        tokens, probabilities = candidates(logits, self.config)
        uniform = np.array([stream.random() for stream in self._streams])
        heights = np.cumsum(probabilities, axis=1)
        # scaled to the last height: rounding must not leave a gap behind the last token
        places = (heights <= (uniform * heights[:, -1])[:, None]).sum(axis=1, keepdims=True)
        drawn: np.ndarray = np.take_along_axis(tokens, places, axis=1)[:, 0].astype(np.int32)
        return drawn
