from __future__ import annotations

import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_data.checks import check_batch
from gpt_data.targets import spread, target_index
from hypothesis import given
from hypothesis import strategies as st


def shared(prefix: int, *continuations: int) -> Batch:
    """One row: a prefix and continuations of the given lengths; token t is t."""
    starts, at = [0] * prefix, prefix
    for length in continuations:
        starts += [at] * length
        at += length
    tokens = np.arange(at, dtype=np.int32)[None]
    return Batch(tokens, tokens.copy(), np.array([starts], np.int32), np.array([prefix], np.int32))


def test_each_continuation_counts_on_from_its_prefix() -> None:
    batch = shared(3, 2, 1, 4)
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5, 6]]
    assert shared(0, 2, 3).positions.tolist() == [[0, 1, 0, 1, 2]]
    assert shared(4).positions.tolist() == [[0, 1, 2, 3]]
    assert batch._replace(prefix_lengths=None, segment_starts=None).positions.tolist() == [[*range(10)]]


def test_rows_take_every_field() -> None:
    batch = shared(2, 3)
    two = Batch(*(np.concatenate([field, field + 1]) for field in batch))
    assert all((got == want + 1).all() for got, want in zip(two.rows(1, 2), batch, strict=True))
    assert two.rows(0, 1).prefix_lengths.shape == (1,)
    assert two._replace(prefix_lengths=None).rows(0, 1).prefix_lengths is None


# a context of 7: ten positions in a row, none of which counts past 6
@pytest.mark.parametrize("batch", [shared(3, 2, 1, 4), shared(0, 7, 3), shared(7), shared(6, 1, 1, 1)])
def test_a_row_may_outgrow_the_context_if_no_position_does(batch: Batch) -> None:
    check_batch(batch, context=7, vocab_size=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": (0, 4, 10)}, "tokens span 0..10, outside the vocabulary of 10"),
        ({"targets": (0, 4, -2)}, "targets span -2..9, outside the vocabulary of 10"),
        ({"segment_starts": (0, 4, 5)}, r"segment_starts\[0, 4\]=5, expected from 0 to the position itself"),
        ({"segment_starts": (0, 4, -1)}, r"segment_starts\[0, 4\]=-1, expected from 0 to the position"),
        ({"segment_starts": (0, 2, 2)}, r"segment_starts\[0, 2\]=2, expected 0 within the prefix"),
        ({"segment_starts": (0, 4, 2)}, r"segment_starts\[0, 4\]=2, expected at least the prefix's length"),
        ({"segment_starts": (0, 6, 3)}, r"segment_starts\[0, 6\]=3, expected never less"),
        ({"segment_starts": (0, 9, 7)}, r"segment_starts\[0, 9\]=7, expected a position that begins"),
        ({"prefix_lengths": (0, 11)}, r"prefix_lengths\[0\]=11, expected from 0 to the row's length 10"),
        ({"prefix_lengths": (0, -1)}, r"prefix_lengths\[0\]=-1, expected from 0"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_named(change: dict[str, tuple[int, ...]], message: str) -> None:
    batch = shared(3, 2, 1, 4)
    [(name, (*at, value))] = change.items()
    field = getattr(batch, name).copy()
    field[tuple(at)] = value
    with pytest.raises(ValueError, match=message):
        check_batch(batch._replace(**{name: field}), context=7, vocab_size=10)


def test_shapes_that_do_not_fit_are_named() -> None:
    batch = shared(3, 2, 1, 4)
    with pytest.raises(ValueError, match=r"positions\[0, 9\]=6, expected below context=6"):
        check_batch(batch, context=6, vocab_size=10)
    with pytest.raises(ValueError, match=r"tokens have shape \(1, 10\), .* T <= context=7"):
        check_batch(batch._replace(prefix_lengths=None), context=7, vocab_size=10)
    with pytest.raises(ValueError, match="need segment_starts"):
        check_batch(batch._replace(segment_starts=None), context=7, vocab_size=10)
    with pytest.raises(ValueError, match="for evaluation only"):
        check_batch(batch, context=7, vocab_size=10, training=True)
    with pytest.raises(ValueError, match=r"prefix_lengths have shape \(2,\), expected \(1,\)"):
        check_batch(batch._replace(prefix_lengths=np.zeros(2, np.int32)), context=7, vocab_size=10)
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
