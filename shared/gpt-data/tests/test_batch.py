from __future__ import annotations

import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_data.checks import check_batch
from gpt_data.targets import spread, target_index
from hypothesis import given
from hypothesis import strategies as st


def packed(*lengths: int) -> Batch:
    """One row of documents of the given lengths; token t is t."""
    ends = np.cumsum(lengths)
    starts = np.repeat(ends - lengths, lengths).astype(np.int32)
    tokens = np.arange(ends[-1], dtype=np.int32)[None]
    return Batch(tokens, tokens.copy(), starts[None])


def test_each_document_counts_from_its_start() -> None:
    assert packed(3, 2, 1, 4).positions.tolist() == [[0, 1, 2, 0, 1, 0, 0, 1, 2, 3]]
    assert packed(3, 7)._replace(segment_starts=None).positions.tolist() == [[*range(10)]]


def test_rows_take_every_field() -> None:
    batch = packed(2, 3)
    two = Batch(*(np.concatenate([field, field + 1]) for field in batch))
    assert all((got == want + 1).all() for got, want in zip(two.rows(1, 2), batch, strict=True))
    assert two._replace(segment_starts=None).rows(0, 1).segment_starts is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": (0, 4, 10)}, "tokens span 0..10, outside the vocabulary of 10"),
        ({"targets": (0, 4, -2)}, "targets span -2..9, outside the vocabulary of 10"),
        ({"segment_starts": (0, 4, 5)}, r"segment_starts\[0, 4\]=5, expected from 0 to the position itself"),
        ({"segment_starts": (0, 4, -1)}, r"segment_starts\[0, 4\]=-1, expected from 0 to the position"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_named(change: dict[str, tuple[int, ...]], message: str) -> None:
    batch = packed(3, 2, 1, 4)
    [(name, (*at, value))] = change.items()
    field = getattr(batch, name).copy()
    field[tuple(at)] = value
    with pytest.raises(ValueError, match=message):
        check_batch(batch._replace(**{name: field}), context=10, vocab_size=10)


def test_shapes_that_do_not_fit_are_named() -> None:
    batch = packed(3, 2, 1, 4)
    check_batch(batch, context=10, vocab_size=10)
    with pytest.raises(ValueError, match=r"tokens have shape \(1, 10\), .* T <= context=9"):
        check_batch(batch, context=9, vocab_size=10)
    with pytest.raises(ValueError, match=r"targets have shape \(1, 9\), expected \(1, 10\)"):
        check_batch(batch._replace(targets=batch.targets[:, 1:]), context=10, vocab_size=10)
    for empty in (np.zeros((0, 3), np.int32), np.zeros((3, 0), np.int32), np.zeros(3, np.int32)):
        with pytest.raises(ValueError, match="tokens have shape"):
            check_batch(Batch(empty, empty), context=7, vocab_size=10)


@given(st.integers(1, 5), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32))
def test_scores_come_back_to_where_their_targets_are(rows: int, context: int, rate: float, seed: int) -> None:
    stream = np.random.default_rng(seed)
    targets = np.where(stream.random((rows, context)) < rate, 5, IGNORE).astype(np.int32)
    everywhere = stream.standard_normal(targets.size).astype(np.float32)
    index = target_index(targets)
    scores = everywhere if index is None else everywhere[index]
    want = np.where(targets == IGNORE, 0.0, everywhere.reshape(targets.shape))
    assert np.array_equal(spread(scores, targets), want)


def test_few_lengths_are_picked_and_full_rows_are_left_alone() -> None:
    lengths = set()
    for count in range(16 * 100 + 1):
        targets = np.full((16, 100), IGNORE, np.int32)
        targets.ravel()[:count] = 1
        index = target_index(targets)
        lengths.add(None if index is None else index.size)
        assert index is None or count <= index.size <= max(200, count + 199)
        assert (index is None) == (count > 1200)
    assert lengths == {None, 200, 400, 600, 800, 1000, 1200}
