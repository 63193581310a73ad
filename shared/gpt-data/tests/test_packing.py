from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_data.packing import pack_documents, window_count
from hypothesis import given
from hypothesis import strategies as st

END = 99


def lay_out(lengths: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Documents of the given lengths (without their opening token), as a stream and its starts."""
    pieces = [np.array([END, *range(1, 1 + n)], np.int32) for n in lengths]
    sizes = [piece.size for piece in pieces]
    return np.concatenate(pieces), np.array([0, *accumulate(sizes)][:-1])


def rows(stream: np.ndarray, starts: np.ndarray, context: int) -> Iterator[tuple[int, Batch]]:
    for window in range(window_count(stream.size, context)):
        at = window * context
        inside = starts[(starts >= at) & (starts <= at + context)] - at
        row = pack_documents(stream[at : at + context + 1], inside, END)
        assert row.segment_starts is not None
        yield at, Batch(row.tokens[None], row.targets[None], row.segment_starts[None])


@given(
    st.integers(1, 9).flatmap(lambda T: st.tuples(st.just(T), st.lists(st.integers(0, 3 * T), min_size=1)))
)
def test_packing_keeps_every_token_once_and_boundaries(case: tuple[int, list[int]]) -> None:
    context, lengths = case
    stream, starts = lay_out(lengths)
    document = np.searchsorted(starts, np.arange(stream.size), side="right")
    inputs, targets = [], []
    for at, batch in rows(stream, starts, context):
        assert batch.segment_starts is not None
        first = batch.segment_starts[0]
        inputs += range(at, at + context)
        for t in range(context):
            # the segment is the part of t's document that the row holds: never empty, never more
            assert 0 <= first[t] <= t
            assert set(document[at + first[t] : at + t + 1]) == {document[at + t]}
            assert first[t] == 0 or document[at + first[t] - 1] != document[at + t]
            if batch.targets[0, t] != IGNORE:
                assert batch.targets[0, t] == stream[at + t + 1]
                assert document[at + t + 1] == document[at + t] or stream[at + t + 1] == END
                targets.append(at + t + 1)
        assert (batch.positions[0] == np.arange(context) - first).all()
    used = window_count(stream.size, context) * context
    assert inputs == list(range(used))
    # the end-of-text token closes a document and opens the next, so that nothing is left out
    assert targets == list(range(1, used + 1))


def test_a_worked_example() -> None:
    # two documents, the second of which opens at 3; the third opens at the place after the row
    row = pack_documents(np.array([5, 6, 7, END, 8, 9, END], np.int32), np.array([3, 6]), END)
    assert row.tokens.tolist() == [5, 6, 7, END, 8, 9]
    assert row.targets.tolist() == [6, 7, END, 8, 9, END]
    assert row.segment_starts is not None
    assert row.segment_starts.tolist() == [0, 0, 0, 3, 3, 3]


def test_a_document_without_an_opening_token_is_no_target_of_the_one_before() -> None:
    row = pack_documents(np.array([5, 6, 7, 8], np.int32), np.array([0, 2, 3]), END)
    assert row.targets.tolist() == [6, IGNORE, IGNORE]


@pytest.mark.parametrize(("tokens", "windows"), [(0, 0), (1, 0), (4, 0), (5, 1), (8, 1), (9, 2)])
def test_window_count(tokens: int, windows: int) -> None:
    assert window_count(tokens, 4) == windows
