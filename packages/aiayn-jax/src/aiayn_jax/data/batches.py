"""Batches of about as many tokens each, of a few shapes, in an order that (seed, step) alone decide.

Pairs are sorted into buckets by their lengths. Every bucket has one shape, so that a compiled step serves
all its batches; the widths are those that fill up the fewest positions. In every epoch each pair
comes exactly once; the last batch of a bucket is filled up with empty rows.

Shapes: B rows, S source positions, T target positions, n pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from gpt_data.batch import IGNORE
from gpt_data.permutation import permute
from gpt_data.widths import choose_widths
from jaxtyping import Bool, Int32, Int64

from aiayn_jax.data.sentences import Side, TokenPairs
from aiayn_jax.parameters import PairBatch

BATCH_ORDER = 0x6261746368
"""Sets the order of batches apart from that of pairs, which has the seed as it is."""


class Shape(NamedTuple):
    """Rows, source positions and target positions of a batch."""

    rows: int
    source: int
    target: int


def choose_shapes(
    source: Int64[np.ndarray, " n"],
    target: Int64[np.ndarray, " n"],
    *,
    tokens: int,
    buckets: int,
    multiple: int = 8,
) -> list[Shape]:
    """The shapes of all batches.

    Args:
        tokens: Positions of a batch on either side, at most, unless one row has more.
        buckets: Shapes at most.
    """
    widths = choose_widths(np.maximum(source, target), buckets, multiple)
    places = np.searchsorted(widths, np.maximum(source, target))
    shapes = []
    for place, width in enumerate(widths):
        inside = places == place
        sides = (_round_up(int(side[inside].max()), multiple) for side in (source, target))
        # no taller than all of its pairs, which would be rows of nothing
        shapes.append(Shape(max(1, min(tokens // width, int(inside.sum()))), *sides))
    return shapes


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


class BatchPlan:
    """The batches of one part, by step.

    Args:
        shapes: Shapes in ascending width; a pair takes the first that it fits into.

    Raises:
        ValueError: If a pair fits into no shape.
    """

    def __init__(self, pairs: TokenPairs, shapes: list[Shape], seed: int) -> None:
        self.pairs, self.shapes, self.seed = pairs, shapes, seed
        self._bucket = _buckets(pairs, shapes)
        counts = np.bincount(self._bucket, minlength=len(shapes))
        self.counts = [-(-int(count) // shape.rows) for count, shape in zip(counts, shapes, strict=True)]
        self._epoch: tuple[int, list[tuple[int, Int64[np.ndarray, " rows"]]]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Batches in which every pair comes once."""
        return sum(self.counts)

    @property
    def filled_share(self) -> float:
        """Share of all positions of an epoch, on both sides, that hold no token."""
        tokens = sum(len(side.ids) for side in self.pairs)
        positions = sum(
            count * shape.rows * (shape.source + shape.target)
            for count, shape in zip(self.counts, self.shapes, strict=True)
        )
        return 1.0 - tokens / positions

    def batch(self, step: int) -> PairBatch:
        """The batch of a step.

        Args:
            step: Steps already taken, from 0, over all epochs.
        """
        epoch, place = divmod(step, self.batches_per_epoch)
        bucket, rows = self.epoch(epoch)[place]
        return fill_batch(self.pairs, rows, self.shapes[bucket])

    def epoch(self, number: int) -> list[tuple[int, Int64[np.ndarray, " rows"]]]:
        """Bucket and pairs of each batch of an epoch, in order.

        Args:
            number: Which epoch, from 0.
        """
        if self._epoch is None or self._epoch[0] != number:
            self._epoch = (number, self._arrange(number))
        return self._epoch[1]

    def _arrange(self, number: int) -> list[tuple[int, Int64[np.ndarray, " rows"]]]:
        size = len(self.pairs)
        order = permute(np.arange(size), size, self.seed, number)
        batches = []
        for bucket, shape in enumerate(self.shapes):
            members = order[self._bucket[order] == bucket]
            batches += [(bucket, members[at : at + shape.rows]) for at in range(0, len(members), shape.rows)]
        places = permute(np.arange(len(batches)), len(batches), self.seed ^ BATCH_ORDER, number)
        return [batches[place] for place in places.tolist()]

    def in_order(self) -> Iterator[PairBatch]:
        """Every pair once, bucket by bucket, in the order of the data."""
        for bucket, shape in enumerate(self.shapes):
            members = np.flatnonzero(self._bucket == bucket)
            for at in range(0, len(members), shape.rows):
                yield fill_batch(self.pairs, members[at : at + shape.rows], shape)


def _buckets(pairs: TokenPairs, shapes: list[Shape]) -> Int64[np.ndarray, " n"]:
    fits = [
        (pairs.source.lengths <= shape.source) & (pairs.target.lengths <= shape.target) for shape in shapes
    ]
    table = np.stack(fits)  # [shapes, n]
    if not table.any(axis=0).all():
        raise ValueError(f"pair {int(table.any(axis=0).argmin())} fits into none of {shapes}")
    return table.argmax(axis=0)


def fill_batch(pairs: TokenPairs, rows: Int64[np.ndarray, " rows"], shape: Shape) -> PairBatch:
    """Pairs as the rows of a batch, filled up on the right and below.

    Args:
        rows: Which ones, at most as many as the shape has rows.
    """
    source, used = fill_side(pairs.source, rows, shape.rows, shape.source)
    target, wanted = fill_side(pairs.target, rows, shape.rows, shape.target)
    opened = np.zeros_like(target)
    opened[:, 1:] = target[:, :-1]
    # the sentence's own last token is the end of text, which also opens it
    opened[: len(rows), 0] = pairs.target.ids[pairs.target.starts[rows + 1] - 1]
    opened[~wanted] = 0
    lengths = used.sum(axis=1, dtype=np.int32)
    return PairBatch(source, lengths, opened, np.where(wanted, target, np.int32(IGNORE)))


def fill_side(
    side: Side, rows: Int64[np.ndarray, " rows"], height: int, width: int
) -> tuple[Int32[np.ndarray, "B S"], Bool[np.ndarray, "B S"]]:
    """Sentences as rows of one array, zero where filled up, and where they are."""
    lengths = np.zeros(height, np.int64)
    lengths[: len(rows)] = side.starts[rows + 1] - side.starts[rows]
    begins = np.zeros(height, np.int64)
    begins[: len(rows)] = side.starts[rows]
    columns = np.arange(width)
    used = columns < lengths[:, None]
    places = np.where(used, begins[:, None] + columns, 0)
    return np.where(used, side.ids[places], np.int32(0)).astype(np.int32), used
