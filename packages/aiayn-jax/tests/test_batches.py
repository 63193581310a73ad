"""Bucketing: every pair once in an epoch, few shapes, the cheapest widths, order by (seed, step) alone."""

from __future__ import annotations

import numpy as np
import pytest
from aiayn_jax.data.batches import BatchPlan, Shape, choose_shapes
from aiayn_jax.data.sentences import Side, TokenPairs
from gpt_data.batch import IGNORE
from hypothesis import given, settings
from hypothesis import strategies as st

END = 99
LENGTHS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=60)


def sentences(lengths: list[int], base: int) -> Side:
    """Pair i has ids that only it has, and the end of text."""
    parts = [np.r_[np.full(n - 1, base + i, np.int32), np.int32(END)] for i, n in enumerate(lengths)]
    starts = np.r_[0, np.cumsum(lengths)].astype(np.int64)
    return Side(np.concatenate(parts).astype(np.int32), starts)


def make_pairs(lengths: list[tuple[int, int]]) -> TokenPairs:
    source, target = zip(*lengths, strict=True)
    return TokenPairs(sentences(list(source), 1000), sentences(list(target), 2000))


def make_plan(lengths: list[tuple[int, int]], tokens: int, buckets: int, seed: int = 5) -> BatchPlan:
    pairs = make_pairs(lengths)
    shapes = choose_shapes(
        pairs.source.lengths, pairs.target.lengths, tokens=tokens, buckets=buckets, multiple=4
    )
    return BatchPlan(pairs, shapes, seed)


def test_no_batch_is_taller_than_there_are_pairs_for_it() -> None:
    plan = make_plan([(3, 4), (4, 2), (9, 12)], tokens=10**30, buckets=2)
    assert plan.shapes == [Shape(2, 4, 4), Shape(1, 12, 12)]
    assert make_plan([(3, 4), (4, 2), (9, 12)], tokens=4, buckets=2).shapes[0].rows == 1


@given(LENGTHS, st.integers(1, 120), st.integers(1, 5), st.integers(0, 3))
@settings(deadline=None)
def test_every_pair_comes_once_an_epoch_in_one_of_the_shapes(
    lengths: list[tuple[int, int]], tokens: int, buckets: int, epoch: int
) -> None:
    plan = make_plan(lengths, tokens, buckets)
    assert len(plan.shapes) <= buckets
    seen = []
    for step in range(epoch * plan.batches_per_epoch, (epoch + 1) * plan.batches_per_epoch):
        batch = plan.batch(step)
        assert (*batch.source.shape, batch.target_in.shape[1]) in plan.shapes
        for row, count in enumerate(batch.source_lengths):
            wanted = batch.target_out[row] != IGNORE
            assert bool(count) == bool(wanted.any())
            if count:
                seen.append((int(count), int(wanted.sum())))
    assert sorted(seen) == sorted(lengths)


@given(LENGTHS, st.integers(1, 120), st.integers(1, 5))
@settings(deadline=None)
def test_rows_hold_their_sentences_and_nothing_else(
    lengths: list[tuple[int, int]], tokens: int, buckets: int
) -> None:
    plan = make_plan(lengths, tokens, buckets)
    for place, (bucket, members) in enumerate(plan.epoch(0)):
        batch, shape = plan.batch(place), plan.shapes[bucket]
        assert batch.source.shape == (shape.rows, shape.source)
        for row, pair in enumerate(members.tolist()):
            source, target = lengths[pair]
            assert batch.source[row].tolist() == [1000 + pair] * (source - 1) + [END] + [0] * (
                shape.source - source
            )
            assert batch.target_out[row].tolist() == [2000 + pair] * (target - 1) + [END] + [IGNORE] * (
                shape.target - target
            )
            assert batch.target_in[row].tolist() == [END] + [2000 + pair] * (target - 1) + [0] * (
                shape.target - target
            )
        assert not batch.source[len(members) :].any()
        assert not batch.source_lengths[len(members) :].any()


def test_the_order_depends_on_seed_and_step_alone() -> None:
    lengths = [(1 + i % 13, 1 + i % 7) for i in range(50)]
    forth, back = make_plan(lengths, 40, 3), make_plan(lengths, 40, 3)
    steps = range(3 * forth.batches_per_epoch)
    ahead = [forth.batch(step) for step in steps]
    # asked for in reverse: nothing may depend on what was asked before
    behind = [back.batch(step) for step in reversed(steps)][::-1]
    for one, other in zip(ahead, behind, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_epochs_and_seeds_differ() -> None:
    lengths = [(1 + i % 13, 1 + i % 7) for i in range(50)]
    orders = {
        tuple(tuple(members.tolist()) for _, members in make_plan(lengths, 40, 3, seed).epoch(epoch))
        for seed in (5, 6)
        for epoch in (0, 1)
    }
    assert len(orders) == 4


def test_the_share_that_is_filled_up_is_counted() -> None:
    # two pairs of 3 + 4 tokens in one batch of 3 rows of 4 + 4 positions
    plan = BatchPlan(make_pairs([(3, 4), (3, 4)]), [Shape(3, 4, 4)], 0)
    assert plan.filled_share == pytest.approx(1 - 14 / 24, abs=1e-12)


def test_a_pair_that_fits_no_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="pair 1 fits into none"):
        BatchPlan(make_pairs([(3, 4), (3, 5)]), [Shape(3, 4, 4)], 0)
