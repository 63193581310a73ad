"""From logits to one token per row: temperature, top-k, top-p.  Shapes: B rows, V vocabulary."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int


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


def token_probabilities(logits: Float[np.ndarray, "B V"], config: SamplingConfig) -> Float[np.ndarray, "B V"]:
    """The distribution that tokens are drawn from, in float64.

    First the temperature, then exactly ``top_k`` tokens are kept, then of these the fewest whose
    probabilities, renormalized, reach ``top_p``; at least one. Of equal logits the lower id comes first.

    References:
        Holtzman et al. 2020, section 3.1 (top-p).
    """
    order = np.argsort(-logits, axis=1, kind="stable")
    ranked = np.take_along_axis(logits, order, axis=1).astype(np.float64)
    keep = 1 if config.temperature == 0.0 else min(config.top_k or ranked.shape[1], ranked.shape[1])
    # at a temperature near zero the distance overflows to -inf, whose exponential is the 0 that it should be
    with np.errstate(over="ignore"):
        ranked = (ranked - ranked[:, :1]) / (config.temperature or 1.0)
    weights = np.exp(ranked)
    weights[:, keep:] = 0.0
    weights /= weights.sum(axis=1, keepdims=True)
    if config.top_p < 1.0:
        # a token stays if those before it have not reached top_p yet
        before = np.cumsum(weights, axis=1) - weights
        weights[before >= config.top_p] = 0.0
        weights /= weights.sum(axis=1, keepdims=True)
    chosen = np.zeros_like(weights)
    np.put_along_axis(chosen, order, weights, axis=1)
    return chosen


class Sampler:
    """Draws one token per row and step; row r's draws depend on the seed and r alone."""

    def __init__(self, config: SamplingConfig, rows: int) -> None:
        self.config = config
        self._streams = [
            np.random.Generator(np.random.Philox(key=np.array([config.seed, row], np.uint64)))
            for row in range(rows)
        ]

    def draw(self, logits: Float32[np.ndarray, "B V"]) -> Int[np.ndarray, " B"]:
        """The next token of each row."""
        probabilities = token_probabilities(logits, self.config)
        uniform = np.array([stream.random() for stream in self._streams])
        heights = np.cumsum(probabilities, axis=1)
        # scaled to the last height: rounding must not leave a gap behind the last token
        places: np.ndarray = (heights <= (uniform * heights[:, -1])[:, None]).sum(axis=1, dtype=np.int32)
        return places
