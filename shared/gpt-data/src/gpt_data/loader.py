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
from gpt_data.mixture import BLOCK, Mixture
from gpt_data.packing import PACKINGS, Row, pack_documents, window_count
from gpt_data.permutation import permute
from gpt_data.stream import TokenStream

PREFETCH_DEPTH = 2


class BatchLoader:
    """The batches of one split.

    Row g of all training, counted over all steps, is window ``permutation(seed, epoch)(g mod N)`` with
    ``epoch = g div N``: nothing has to be read or remembered to go to a step. Of a mixture, row g is one of
    its streams' rows, and that one's window is found likewise, by a seed of its own.

    Args:
        stream: The split, or a mixture of several.
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
        stream: TokenStream | Mixture,
        *,
        rows: int,
        context: int,
        seed: int = 0,
        packing: str = "stream",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        _check(rows, context, packing, rank, world)
        self.mixture = stream if isinstance(stream, Mixture) else None
        self.streams = (stream,) if isinstance(stream, TokenStream) else stream.streams
        self.rows = rows
        self.context = context
        self.seed = seed
        self.packing = packing
        self.rank = rank
        self.world = world
        self._windows = [window_count(part.tokens, context) for part in self.streams]
        for part, windows in zip(self.streams, self._windows, strict=True):
            if windows == 0:
                raise InputError(
                    f"split {part.name} has {part.tokens} tokens; "
                    f"one row of context {context} needs {context + 1}"
                )

    @property
    def windows(self) -> int:
        """Rows until one has been read twice."""
        quotas = (BLOCK,) if self.mixture is None else self.mixture.quotas
        return min(count * BLOCK // quota for count, quota in zip(self._windows, quotas, strict=True))

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
        return self._assemble([self._row(*place) for place in self.places(first, first + share)])

    def places(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The rows ``start`` to ``stop`` of the endless shuffled order, each as a stream and its window."""
        index = np.arange(start, stop, dtype=np.int64)
        sources, index = self._of_streams(index, self.seed)
        windows = np.zeros_like(index)
        for source, count_ in enumerate(self._windows):
            epochs, inside = np.divmod(index, count_)
            for epoch in np.unique(epochs[sources == source]).tolist():
                here = (sources == source) & (epochs == epoch)
                windows[here] = permute(inside[here], count_, self.seed + (source << 32), epoch)
        return list(zip(sources.tolist(), windows.tolist(), strict=True))

    def _of_streams(self, index: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        return (np.zeros_like(index), index) if self.mixture is None else self.mixture.places(index, seed)

    def sequential(self, max_rows: int | None = None) -> Iterator[Batch]:
        """The split's first rows in order, the same every time: for evaluation.

        Each batch has the shape of a training batch; the last is filled up with rows without targets. Of a
        mixture, the first rows of each stream, in their shares, up to the end of the first that ends.

        Args:
            max_rows: Rows over all ranks; all of the split if None or more than there are.
        """
        places = self._first_places(max_rows)
        share, total = self.rows // self.world, len(places)
        for first in range(self.rank * share, total + self.rank * share, self.rows):
            rows = [self._row(*place) for place in places[first : first + share]]
            yield self._assemble(rows + [self._blank()] * (share - len(rows)))

    def _first_places(self, max_rows: int | None) -> list[tuple[int, int]]:
        most = min(self.windows + BLOCK, self.windows + BLOCK if max_rows is None else max_rows)
        sources, windows = self._of_streams(np.arange(most, dtype=np.int64), 0)
        ended = np.flatnonzero(windows >= np.array(self._windows)[sources])
        stop = int(ended[0]) if ended.size else most
        return list(zip(sources[:stop].tolist(), windows[:stop].tolist(), strict=True))

    @contextmanager
    def prefetch(self, first_step: int = 0) -> Iterator[Iterator[Batch]]:
        """The batches from ``first_step`` on without end, filled ahead by a thread.

        An error in the thread is raised where the batch would have come. Leaving the context ends the
        thread.
        """
        with read_ahead(map(self.batch, count(first_step)), PREFETCH_DEPTH) as batches:
            yield batches

    def _row(self, source: int, window: int) -> Row:
        stream, start = self.streams[source], window * self.context
        tokens = stream.read(start, start + self.context + 1)
        if self.packing == "stream":
            return Row(tokens[:-1], tokens[1:], None)
        starts = stream.document_starts(start, start + self.context + 1) - start
        return pack_documents(tokens, starts, stream.end_of_text)

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
