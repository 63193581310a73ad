"""Rows whose continuations share a prefix: scored as if each had a row of its own, in one program a shape."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_jax import attention
from gpt_jax.attention import TILE
from gpt_jax.backend import JaxBackend
from gpt_jax.loss import target_log_probs
from gpt_jax.options import Options
from gpt_jax_toy import SMALL, apart, assert_close, build, make_batch, share
from gpt_trainer.backend import OptimizerConfig, Runtime

# no prefix, one of one token, all of the context but one, and the whole row; continuations of one token;
# rows longer than the context of 19, the last longer than a tile of queries
ROWS = {
    "whole": [(19, []), (3, [16]), (0, [18, 1])],
    "short": [(0, [19, 1, 7]), (1, [18, 1, 1, 5]), (12, [7, 1, 3]), (18, [1, 1])],
    "tiles": [(10, [9] * 28 + [1, 5]), (0, [19, 3] * 12), (18, [1] * 250)],
}


def compare(log_probs: np.ndarray, backend: JaxBackend, batch: Batch) -> None:
    """Against the same continuations in rows of their own; only the order of sums differs."""
    rows, places = apart(batch)
    for line, (want, (row, at)) in enumerate(zip(backend.log_probs(rows), places, strict=True)):
        assert_close(f"row {row}, continuation {line}", log_probs[row, at], want[: len(at)], rel=1e-6)


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_shared_prefixes_equal_repeated_ones(backend: JaxBackend, rows: list[tuple[int, list[int]]]) -> None:
    batch = share(rows, SMALL.vocab_size)
    assert (batch.tokens.shape[1] > TILE) == (rows is ROWS["tiles"])
    compare(backend.log_probs(batch), backend, batch)


def test_unrolled_layers_know_prefixes(backend: JaxBackend) -> None:
    batch = share(ROWS["short"], SMALL.vocab_size)
    assert_close("log", build(layers="unroll").log_probs(batch), backend.log_probs(batch), rel=1e-6)


def test_a_continuation_that_sees_another_is_noticed(
    backend: JaxBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = share(ROWS["short"], SMALL.vocab_size)
    visible = attention.visible
    monkeypatch.setattr(attention, "visible", lambda index, stop, *_: visible(index, stop, None))
    inputs, plan = backend._scored(batch), backend._plan
    seen = jax.jit(lambda params: target_log_probs(params, inputs, None, plan))(backend._state.params)
    with pytest.raises(AssertionError, match="relative error"):
        compare(np.asarray(seen).reshape(batch.tokens.shape), backend, batch)


def test_the_head_scores_targets_alone_and_gives_the_same(backend: JaxBackend) -> None:
    batch = share(ROWS["short"], SMALL.vocab_size)
    every = backend.log_probs(batch)
    for rate in (0.0, 0.1, 0.5):
        few = np.random.default_rng(5).random(every.shape) < rate
        scored = batch._replace(targets=np.where(few, batch.targets, IGNORE))
        got = backend.log_probs(scored)
        assert not got[~few].any()
        assert_close(f"log-probabilities at {rate}", got, np.where(few, every, 0.0), rel=1e-6)
        assert backend.evaluate(scored) == (pytest.approx(-got.sum(), rel=1e-6), few.sum())


def test_one_program_for_each_shape_and_share_of_targets() -> None:
    # a configuration that no other test uses, as JAX keeps its programs by function and plan
    fresh = JaxBackend(SMALL, OptimizerConfig(), Runtime(device="cpu"), Options())
    fresh._plan = type(fresh._plan)(SMALL.n_head, SMALL.vocab_size, chunk=977)
    programs = fresh._log_probs._cache_size
    before, counts = programs(), []
    for continuations in (7, 12, 19):  # columns are filled up to 64
        batch = share([(5, [3] * continuations)] * 2, SMALL.vocab_size)
        for count in (1, 15, 16, 17, 32):
            targets = np.full(batch.targets.shape, IGNORE, np.int32)
            targets.ravel()[:count] = 7
            fresh.log_probs(batch._replace(targets=targets))
            counts.append(programs() - before)
    # 2 rows of 64 in shares of 16: one program for up to 16 targets, another for up to 32
    assert counts == [1, 1, 1] + [2] * 12


def test_no_gradient_is_taken_through_a_prefix(backend: JaxBackend) -> None:
    batch = share([(5, [3, 4])], SMALL.vocab_size)
    for call in (lambda: backend.train_step([batch], 1e-3, 0), lambda: backend.gradients([batch], 0)):
        with pytest.raises(ValueError, match="for evaluation only"):
            call()
    with pytest.raises(ValueError, match=r"positions\[0, 19\]=19, expected below context=19"):
        backend.log_probs(share([(5, [15])], SMALL.vocab_size))
    with pytest.raises(ValueError, match="need segment_starts"):
        backend.evaluate(make_batch(1, 4)._replace(prefix_lengths=np.ones(1, np.int32)))
