"""Rows whose continuations share a prefix: scored as if each had a row of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters
from gpt_triton import reference
from gpt_triton.backend import TritonBackend
from gpt_triton.options import Options
from gpt_triton.reference import attention
from gpt_triton_kernel_runs import DEVICE
from gpt_triton_plain import plain_attention

if DEVICE.type == "cpu":
    from gpt_triton_guard import bounds_checked
else:
    bounds_checked = nullcontext

Check = Callable[..., None]
Share = Callable[..., Batch]
Rows = Sequence[tuple[int, Sequence[int]]]

# no prefix, one of one token, all of the context but one, and the whole row; continuations of one token;
# rows longer than the context of 13, the last longer than several tiles of queries
ROWS = {
    "whole": [(13, []), (3, [10]), (0, [12, 1])],
    "short": [(0, [13, 1, 7]), (1, [12, 1, 1, 5]), (8, [5, 1, 3]), (12, [1, 1])],
    "long": [(10, [3] * 88 + [1, 2]), (0, [13, 3] * 17), (12, [1] * 250)],
}


def make(config: ModelConfig, weights: Parameters, kernels: str = "reference") -> TritonBackend:
    backend = TritonBackend(
        config, OptimizerConfig(), Runtime(device=DEVICE.type.replace("cuda", "gpu")), Options(kernels)
    )
    backend.load(weights)
    return backend


def compare(log_probs: np.ndarray, backend: TritonBackend, batch: Batch, assert_close: Check) -> None:
    """Against the same continuations in rows of their own; only the order of sums differs."""
    assert batch.segment_starts is not None
    assert batch.prefix_lengths is not None
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
        assert_close(f"row {row}, continuation {line}", log_probs[row, at], want[: len(at)], "split")


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_shared_prefixes_equal_repeated_ones(
    rows: Rows, config: ModelConfig, weights: Parameters, share: Share, assert_close: Check
) -> None:
    backend, batch = make(config, weights), share(rows)
    compare(backend.log_probs(batch), backend, batch, assert_close)


# the sigmoid of a very negative number goes through infinity to 0, as it should; NumPy remarks on it
@pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")
@pytest.mark.parametrize("scored", [1.0, 0.3], ids=("everywhere", "few"))
def test_the_kernels_share_prefixes_too(
    scored: float, config: ModelConfig, weights: Parameters, share: Share, assert_close: Check
) -> None:
    batch = share([(8, [5, 1, 3] * 7), (0, [13, 3] * 4), (1, [12] * 5)])
    ignored = np.random.default_rng(2).random(batch.targets.shape) > scored
    batch = batch._replace(targets=np.where(ignored, IGNORE, batch.targets))
    with bounds_checked():
        got = make(config, weights, "triton").log_probs(batch)
    assert_close("log-probabilities", got, make(config, weights).log_probs(batch), "float32")


def test_reference_attention_equals_the_plain_form(share: Share, assert_close: Check) -> None:
    # 70 and 270 positions: one tile of 64 queries and more, more
    for rows in (ROWS["long"], [(33, [20, 1, 16]), (64, [6]), (70, [])]):
        batch = share(rows)
        starts, prefixes = torch.from_numpy(batch.segment_starts), torch.from_numpy(batch.prefix_lengths)
        stream = torch.Generator().manual_seed(1)
        qkv = torch.randn(*starts.shape, 3 * 3 * 2, dtype=torch.float64, generator=stream)
        out, _ = reference.attention_fwd(qkv, 3, starts, None, prefixes)
        assert_close("out", out, plain_attention(qkv, 3, starts, None, prefixes), "float64")


def test_a_continuation_that_sees_another_is_noticed(
    config: ModelConfig,
    weights: Parameters,
    share: Share,
    assert_close: Check,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, batch = make(config, weights), share(ROWS["short"])
    before = attention._before_start
    monkeypatch.setattr(attention, "_before_start", lambda *given: torch.zeros_like(before(*given)))
    seen = backend.log_probs(batch)
    monkeypatch.undo()
    with pytest.raises(AssertionError, match="relative error"):
        compare(seen, backend, batch, assert_close)


def test_the_head_scores_targets_alone_and_gives_the_same(
    config: ModelConfig,
    weights: Parameters,
    share: Share,
    assert_close: Check,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, batch = make(config, weights), share(ROWS["short"])
    every, scored, whole = backend.log_probs(batch), [], reference.linear_nll
    monkeypatch.setattr(reference, "linear_nll", lambda x, *rest: scored.append(len(x)) or whole(x, *rest))
    for rate in (0.0, 0.1, 0.5):
        few = np.random.default_rng(5).random(every.shape) < rate
        part = batch._replace(targets=np.where(few, batch.targets, IGNORE))
        got = backend.log_probs(part)
        assert not got[~few].any()
        assert_close(f"log-probabilities at {rate}", got, np.where(few, every, 0.0), "split")
        # shares of an eighth of 84 positions
        assert scored.pop() == max(1, -(-few.sum() // 11)) * 11
        assert backend.evaluate(part) == (pytest.approx(-got.sum(), rel=1e-6), few.sum())


def test_no_gradient_is_taken_through_a_prefix(
    config: ModelConfig, weights: Parameters, share: Share
) -> None:
    backend, batch = make(replace(config, dropout=0.1), weights), share([(5, [3, 4])])
    for call in (lambda: backend.train_step([batch], 1e-3, 0), lambda: backend.gradients([batch], 0)):
        with pytest.raises(ValueError, match="for evaluation only"):
            call()
    with pytest.raises(ValueError, match=r"positions\[0, 13\]=13, expected below context=13"):
        backend.log_probs(share([(5, [9])]))
