"""Rows whose continuations share a prefix: scored as if each had a row of its own.

By rows, which is the way of a GPU; ``test_scoring.py`` holds the other way to it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from gpt_data.batch import IGNORE, Batch
from gpt_torchfunc import model
from gpt_torchfunc.options import Options

# no prefix, one of one token, all of the context but one, and the whole row; continuations of one token;
# rows longer than the context of 13
ROWS = {
    "whole": [(13, []), (3, [10]), (0, [12, 1])],
    "short": [(0, [13, 1, 7]), (1, [12, 1, 1, 5]), (8, [5, 1, 3]), (12, [1, 1])],
    "long": [(10, [3] * 88 + [1, 2]), (0, [13, 3] * 17), (12, [1] * 250)],
}


ROWWISE = Options(scoring="rows")


def compare(log_probs: np.ndarray, backend, batch: Batch, assert_close) -> None:
    """Against the same continuations in rows of their own; only the order of sums differs."""
    places = []
    for row, (starts, prefix) in enumerate(zip(batch.segment_starts, batch.prefix_lengths, strict=True)):
        for start in np.unique(starts[prefix:]) if prefix < len(starts) else [prefix]:
            own = prefix + np.flatnonzero(starts[prefix:] == start)
            places.append((row, np.concatenate([np.arange(prefix), own])))
    shape = (len(places), max(len(at) for _, at in places))
    apart = Batch(np.zeros(shape, np.int32), np.full(shape, IGNORE, np.int32))
    for line, (row, at) in enumerate(places):
        apart.tokens[line, : len(at)] = batch.tokens[row, at]
        apart.targets[line, : len(at)] = batch.targets[row, at]
    for line, (want, (row, at)) in enumerate(zip(backend.log_probs(apart), places, strict=True)):
        assert_close(f"row {row}, continuation {line}", log_probs[row, at], want[: len(at)], rel=1e-6)


@pytest.mark.parametrize("attention", ["written", "sdpa"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_shared_prefixes_equal_repeated_ones(rows, attention, build, share, assert_close):
    backend, batch = build(options=replace(ROWWISE, attention=attention)), share(rows)
    compare(backend.log_probs(batch), backend, batch, assert_close)


def test_a_continuation_that_sees_another_is_noticed(build, share, assert_close, monkeypatch):
    backend, batch = build(options=ROWWISE), share(ROWS["short"])
    mask = model.attention_mask
    monkeypatch.setattr(model, "attention_mask", lambda i, plan: mask(i._replace(segment_starts=None), plan))
    seen = backend.log_probs(batch)
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="relative error"):
        compare(seen, backend, batch, assert_close)


def test_the_head_scores_targets_alone_and_gives_the_same(build, share, assert_close):
    backend, batch = build(options=ROWWISE), share(ROWS["short"])
    every, heads = backend.log_probs(batch), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and out.shape[-1] == backend._state.params.wte.shape[0]:
                heads.append(len(out))
            return out

    for rate in (0.0, 0.1, 0.5):
        few = np.random.default_rng(5).random(every.shape) < rate
        scored = batch._replace(targets=np.where(few, batch.targets, IGNORE))
        with Watch():
            got = backend.log_probs(scored)
        assert not got[~few].any()
        assert_close(f"log-probabilities at {rate}", got, np.where(few, every, 0.0), rel=1e-6)
        # shares of an eighth of 84 positions
        assert heads.pop() == max(1, -(-few.sum() // 11)) * 11
        assert backend.evaluate(scored) == (pytest.approx(-got.sum(), rel=1e-6), few.sum())


def test_no_gradient_is_taken_through_a_prefix(build, share):
    backend, batch = build(), share([(5, [3, 4])])
    two = [batch.rows(0, 1), batch.rows(0, 1)]
    calls = [
        lambda: backend.train_step([batch], 1e-3, 0),
        lambda: backend.train_step(two, 1e-3, 0),
        lambda: backend.gradients([batch], 0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="for evaluation only"):
            call()
    with pytest.raises(ValueError, match=r"positions\[0, 13\]=13, expected below context=13"):
        backend.log_probs(share([(5, [9])]))
