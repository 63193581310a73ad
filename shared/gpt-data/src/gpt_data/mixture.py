"""Rows of several streams, of each a share: which one a row is of is a function of (seed, row) alone.

Rows come in blocks of 10,000. Each block has its share of every stream to the row, shuffled by the same
permutation as windows are; so how many rows of a stream come before a block is known without counting.

Shapes: n rows, s streams.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from gpt_data.errors import InputError
from gpt_data.packing import window_count
from gpt_data.permutation import permute
from gpt_data.stream import TokenStream

PREFIX = "mix:"
BLOCK = 10_000
"""A stream's share of the rows is a whole number of this many."""
BLOCKS_KEY = -1 << 32
_PART = re.compile(r"(.+?):(\d+(?:\.\d*)?|\.\d+)(?:,|$)")


class Mixture(NamedTuple):
    """Streams of one split, and how many of each ``BLOCK`` rows are of each.

    Attributes:
        names: What the streams were asked for as.
        streams: The streams.
        quotas: Rows of each, ``BLOCK`` in all.
    """

    names: tuple[str, ...]
    streams: tuple[TokenStream, ...]
    quotas: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of all streams."""
        return sum(stream.tokens for stream in self.streams)

    def __str__(self) -> str:
        shares = zip(self.names, self.quotas, strict=True)
        return ", ".join(f"{name} ({quota / BLOCK:.4g})" for name, quota in shares)

    def places(
        self, rows: Int64[np.ndarray, " n"], seed: int
    ) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
        """Of which stream rows are, and which row of its stream each is, counted over all blocks."""
        block, inside = np.divmod(rows, BLOCK)
        source, own = np.empty_like(rows), np.empty_like(rows)
        for number in np.unique(block).tolist():
            here = block == number
            sources, owns = _block(self.quotas, seed, number)
            source[here], own[here] = sources[inside[here]], owns[inside[here]]
        return source, own

    def close(self) -> None:
        """Close every stream."""
        for stream in self.streams:
            stream.close()


@lru_cache(maxsize=8)
def _block(quotas: tuple[int, ...], seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Stream and row of the stream of each row of a block; a stream's rows are in order."""
    shuffled = permute(np.arange(BLOCK), BLOCK, seed + BLOCKS_KEY, number)
    sources = np.searchsorted(np.cumsum(quotas), shuffled, side="right")
    owns = np.empty(BLOCK, np.int64)
    for source, quota in enumerate(quotas):
        owns[sources == source] = number * quota + np.arange(quota)
    return sources, owns


def quotas_of(weights: Mapping[str, float]) -> tuple[int, ...]:
    """How many of each ``BLOCK`` rows are of each stream.

    Raises:
        InputError: If a weight is zero, or too small beside the others for a row.
    """
    exact = np.array([*weights.values()]) * (BLOCK / (sum(weights.values()) or 1.0))
    quotas = np.floor(exact).astype(int)
    # what rounding down leaves goes to those that lost most by it
    quotas[np.argsort(quotas - exact, kind="stable")[: BLOCK - int(quotas.sum())]] += 1
    for (name, weight), share in zip(weights.items(), exact.tolist(), strict=True):
        if share < 1:
            raise InputError(f"{name} has weight {weight:g}, less than a row in {BLOCK:,}")
    return tuple(quotas.tolist())


def mix(streams: Mapping[str, TokenStream], weights: Mapping[str, float]) -> Mixture:
    """Streams in proportion to weights, both by name."""
    quotas = quotas_of({name: weights[name] for name in streams})
    return Mixture(tuple(streams), tuple(streams.values()), quotas)


def long_enough(stream: TokenStream | Mixture, context: int) -> TokenStream | Mixture | None:
    """Without the streams that are too short for a row; None if all are."""
    if isinstance(stream, TokenStream):
        return stream if window_count(stream.tokens, context) else None
    streams = dict(zip(stream.names, stream.streams, strict=True))
    kept = {name: part for name, part in streams.items() if window_count(part.tokens, context)}
    return mix(kept, dict(zip(stream.names, map(float, stream.quotas), strict=True))) if kept else None


def parse_mixture(text: str) -> dict[str, float]:
    """The sources of ``mix:SOURCE:WEIGHT,SOURCE:WEIGHT``, and the weight of each.

    >>> parse_mixture("mix:fineweb-edu:0.8,text:books/:0.2")
    {'fineweb-edu': 0.8, 'text:books/': 0.2}

    Raises:
        InputError: If it is something else, or a source is named twice or is a mixture itself.
    """
    rest, found = text.removeprefix(PREFIX), dict[str, float]()
    while rest:
        part = _PART.match(rest)
        if part is None or part[1] in found or part[1].startswith(PREFIX):
            wrong = (
                f"{rest[:60]!r} is no source and weight" if part is None else f"{part[1]!r} cannot stand here"
            )
            raise InputError(f"--data {text}: {wrong}; write {PREFIX}fineweb-edu:0.8,text:books/:0.2")
        found[part[1]] = float(part[2])
        rest = rest[part.end() :]
    if not found:
        raise InputError(f"--data {text} names no source; write {PREFIX}fineweb-edu:0.8,text:books/:0.2")
    return found
