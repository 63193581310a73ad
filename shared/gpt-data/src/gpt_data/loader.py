"""Batches as a function of (seed, step): shuffled, seekable to any step, shared out over ranks.

Shapes: B rows of one optimizer step (on one rank), T context.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count

import numpy as np

from gpt_data.ahead import read_ahead
from gpt_data.batch import IGNORE, Batch
from gpt_data.errors import InputError
from gpt_data.packing import PACKINGS, Row, pack_documents, window_count
from gpt_data.permutation import permute
from gpt_data.stream import TokenStream

PREFETCH_DEPTH = 2


class BatchLoader:
    """The batches of one split.

    Row g of all training, counted over all steps, is window ``permutation(seed, epoch)(g mod N)`` with
    ``epoch = g div N``: nothing has to be read or remembered to go to a step.

    Args:
        stream: The split.
        rows: Rows of one optimizer step over all ranks.
        context: Tokens of a row.
        seed: Key of the order.
        packing: ``"stream"`` or ``"documents"``.
        rank: Which contiguous share of the rows to give.
        world: Number of shares.

    Raises:
        ValueError: If an argument is out of range.
        InputError: If the stream is too short for one row.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        rows: int,
        context: int,
        seed: int = 0,
        packing: str = "stream",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        _check(rows, context, packing, rank, world)
        self.stream = stream
        self.rows = rows
        self.context = context
        self.seed = seed
        self.packing = packing
        self.rank = rank
        self.world = world
        self.windows = window_count(stream.tokens, context)
        if self.windows == 0:
            raise InputError(
                f"split {stream.name} has {stream.tokens} tokens; "
                f"one row of context {context} needs {context + 1}"
            )

    def batch(self, step: int) -> Batch:
        """This rank's rows of optimizer step ``step``, from 0.

        Raises:
            ValueError: If ``step`` is negative.
            InputError: If a shard was cut or holds an id outside the vocabulary.
        """
        if step < 0:
            raise ValueError(f"step={step} is negative")
        share = self.rows // self.world
        first = step * self.rows + self.rank * share
        return self._assemble([self._row(window) for window in self.windows_of(first, first + share)])

    def windows_of(self, start: int, stop: int) -> list[int]:
        """The windows at places ``start`` to ``stop`` of the endless shuffled order."""
        found: list[int] = []
        while start < stop:
            epoch, inside = divmod(start, self.windows)
            end = min(stop, (epoch + 1) * self.windows)
            index = np.arange(inside, inside + end - start, dtype=np.int64)
            found += permute(index, self.windows, self.seed, epoch).tolist()
            start = end
        return found

    def sequential(self, max_rows: int | None = None) -> Iterator[Batch]:
        """The split's first rows in order, the same every time: for evaluation.

        Each batch has the shape of a training batch; the last is filled up with rows without targets.

        Args:
            max_rows: Rows over all ranks; all of the split if None or more than there are.
        """
        total = self.windows if max_rows is None else min(max_rows, self.windows)
        share = self.rows // self.world
        for first in range(self.rank * share, total + self.rank * share, self.rows):
            chosen = range(first, min(first + share, total))
            rows = [self._row(window) for window in chosen]
            yield self._assemble(rows + [self._blank()] * (share - len(rows)))

    @contextmanager
    def prefetch(self, first_step: int = 0) -> Iterator[Iterator[Batch]]:
        """The batches from ``first_step`` on without end, filled ahead by a thread.

        An error in the thread is raised where the batch would have come. Leaving the context ends the
        thread.

        Args:
            first_step: The first batch's step.
        """
        with read_ahead(map(self.batch, count(first_step)), PREFETCH_DEPTH) as batches:
            yield batches

    def _row(self, window: int) -> Row:
        start = window * self.context
        tokens = self.stream.read(start, start + self.context + 1)
        if self.packing == "stream":
            return Row(tokens[:-1], tokens[1:], None)
        starts = self.stream.document_starts(start, start + self.context + 1) - start
        return pack_documents(tokens, starts, self.stream.end_of_text)

    def _blank(self) -> Row:
        zeros = np.zeros(self.context, np.int32)
        starts = zeros if self.packing == "documents" else None
        return Row(zeros, np.full(self.context, IGNORE, np.int32), starts)

    def _assemble(self, rows: Sequence[Row]) -> Batch:
        tokens, targets = np.stack([row.tokens for row in rows]), np.stack([row.targets for row in rows])
        starts = [row.segment_starts for row in rows if row.segment_starts is not None]
        return Batch(tokens, targets, np.stack(starts) if starts else None)


def _check(rows: int, context: int, packing: str, rank: int, world: int) -> None:
    for name, value in (("rows", rows), ("context", context), ("world", world)):
        if value < 1:
            raise ValueError(f"{name}={value} is not positive")
    if packing not in PACKINGS:
        raise ValueError(f"packing={packing!r} is not one of {', '.join(PACKINGS)}")
    if not 0 <= rank < world:
        raise ValueError(f"rank={rank} is not in [0, {world})")
    if rows % world:
        raise ValueError(f"rows={rows} is not a multiple of world={world}")
