"""The backend on a CPU: what it promises to the trainer, in values."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters
from gpt_trainer.ranks.collectives import send_from_owners
from gpt_trainer.ranks.place import Place
from gpt_trainer.registry import find_backend
from gpt_triton import reference
from gpt_triton.backend import TritonBackend
from gpt_triton.options import SPEC, Options
from gpt_triton_plain import PlainModel
from torch.fx.experimental.proxy_tensor import make_fx

Check = Callable[..., None]
CPU = Runtime(device="cpu", seed=5)


def make(
    config: ModelConfig,
    weights: Parameters,
    runtime: Runtime = CPU,
    optimizer: Literal["adamw", "muon"] = "adamw",
) -> TritonBackend:
    backend = TritonBackend(config, OptimizerConfig(optimizer=optimizer), runtime, Options())
    backend.load(weights)
    return backend


def same(a: Parameters, b: Parameters) -> bool:
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_is_registered() -> None:
    assert find_backend("gpt-triton") is SPEC


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_exports_what_was_loaded(precision: str, config: ModelConfig, weights: Parameters) -> None:
    backend = make(config, weights, replace(CPU, precision=precision))
    assert same(backend.export(), weights)
    assert not any(value.any() for value in backend.export_optimizer_state()["first"].values())
    squares = {name: value**2 for name, value in weights.items()}
    backend.load(weights, {"first": weights, "second": squares})
    assert same(backend.export_optimizer_state()["first"], weights)
    assert same(backend.export_optimizer_state()["second"], squares)


def test_float32_weights_that_are_whole_everywhere_are_not_gathered(
    config: ModelConfig, weights: Parameters
) -> None:
    shared = replace(CPU, shard="optimizer")
    one_of_two = TritonBackend(config, OptimizerConfig(), shared, Options(), Place(world=2))
    one_of_two.load(weights)
    # the other is not there: asked for its share, torch would say that no group of processes is
    assert same(one_of_two.export(), weights)


def test_the_end_of_unequal_parts_comes_from_its_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[int, list[int]] = {}
    monkeypatch.setattr(torch.distributed, "broadcast", lambda end, rank: sent.update({rank: end.tolist()}))
    send_from_owners(torch.arange(9).split([2, 0, 4, 3]), 3)
    assert sent == {2: [3, 4, 5], 3: [6, 7, 8]}


def test_a_refused_load_changes_nothing(config: ModelConfig, weights: Parameters) -> None:
    backend = make(config, weights)
    doubled = {name: 2 * value for name, value in weights.items()}
    broken = {name: value for name, value in weights.items() if "ln_f.bias" not in name}
    with pytest.raises(ValueError, match=r"missing transformer\.ln_f\.bias"):
        backend.load(doubled, {"first": weights, "second": broken})
    assert same(backend.export(), weights)


@pytest.mark.parametrize("boundaries", [False, True])
def test_evaluate_and_log_probs_equal_the_plain_model(
    boundaries: bool,
    config: ModelConfig,
    weights: Parameters,
    batch: Batch,
    packed: Batch,
    assert_close: Check,
) -> None:
    rows = packed if boundaries else batch
    # dropout belongs to training alone
    backend = make(replace(config, dropout=0.5), weights)
    wide = {name: torch.from_numpy(value).double() for name, value in weights.items()}
    logits = PlainModel(config, rows).logits(wide)
    assert_close("logits", backend.logits(rows), logits, "float32")
    targets = torch.from_numpy(rows.targets).long()[..., None]
    picked = logits.log_softmax(-1).gather(2, targets.clamp(min=0)) * (targets != IGNORE)
    assert_close("log_probs", backend.log_probs(rows), picked[..., 0], "float32")
    total, count = backend.evaluate(rows)
    assert count == rows.target_count
    assert_close("evaluate", total, -picked.sum(), "float32")


def test_what_is_loaded_is_what_bfloat16_reads(
    config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    backend = make(config, weights, replace(CPU, precision="bfloat16"))
    want = make(config, weights).logits(batch)
    error = np.linalg.norm(backend.logits(batch) - want) / np.linalg.norm(want)
    assert 1e-4 < error < 3e-2  # 8 bits of mantissa


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_learns_a_batch(
    precision: str, config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    backend = make(config, weights, replace(CPU, precision=precision))
    losses = [backend.train_step([batch], 1e-2, step).fetch().loss for step in range(12)]
    assert losses[-1] < 0.6 * losses[0]


def test_a_step_reports_the_loss_and_the_norm_of_its_gradients(
    config: ModelConfig, weights: Parameters, batch: Batch, assert_close: Check
) -> None:
    backend = make(config, weights)
    loss, gradients = backend.gradients([batch], 0)
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradients.values()))
    metrics = backend.train_step([batch], 1e-3, 0).fetch()
    assert_close("loss", metrics.loss, loss, "split")
    assert_close("norm", metrics.grad_norm, norm, "optimizer")
    assert metrics.updated


def test_the_cut_into_micro_batches_changes_rounding_only(
    config: ModelConfig, weights: Parameters, packed: Batch, assert_close: Check
) -> None:
    backend = make(config, weights)
    loss, whole = backend.gradients([packed], 0)
    for rows in (1, 2):
        parts = [packed.rows(start, start + rows) for start in range(0, 4, rows)]
        part_loss, cut = backend.gradients(parts, 0)
        assert_close("loss", part_loss, loss, "split")
        for name, value in cut.items():
            assert_close(name, value, whole[name], "split")


def test_a_run_repeats_itself_to_the_bit(config: ModelConfig, weights: Parameters, packed: Batch) -> None:
    ends = []
    for _ in range(2):
        backend = make(replace(config, dropout=0.1), weights)
        for step in range(3):
            backend.train_step([packed.rows(0, 2), packed.rows(2, 4)], 1e-3, step)
        ends.append((backend.export(), *backend.export_optimizer_state().values()))
    assert all(same(a, b) for a, b in zip(*ends, strict=True))


def test_what_a_first_call_without_its_kernels_leaves_behind_does_not_count(
    config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    want, backend = make(config, weights).gradients([batch], 0), make(config, weights)
    share = backend._add_share
    share.prepare = lambda *_: [
        total.fill_(np.nan) for total in (backend._sums.loss, backend._sums.gradients.flat)
    ]
    loss, gradients = backend.gradients([batch], 0)
    assert loss == want[0]
    assert same(gradients, want[1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_reloaded_run_continues_to_the_bit(
    optimizer: Literal["adamw", "muon"], config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    config = replace(config, dropout=0.1)
    straight, first, second = (make(config, weights, CPU, optimizer) for _ in range(3))
    for step in range(4):
        straight.train_step([batch], 1e-3, step)
    for step in range(2):
        first.train_step([batch], 1e-3, step)
    second.load(first.export(), first.export_optimizer_state())
    for step in range(2, 4):
        second.train_step([batch], 1e-3, step)
    assert same(second.export(), straight.export())


def test_dropout_depends_on_seed_step_and_row(config: ModelConfig, weights: Parameters, batch: Batch) -> None:
    config = replace(config, dropout=0.3)
    backend = make(config, weights)
    base = backend.gradients([batch], 0)[0]
    assert backend.gradients([batch], 0)[0] == base
    assert backend.gradients([batch], 1)[0] != base
    assert make(config, weights, replace(CPU, seed=6)).gradients([batch], 0)[0] != base
    assert backend.gradients([batch, batch], 0)[0] != base


def test_skip_above_leaves_the_weights_alone(config: ModelConfig, weights: Parameters, batch: Batch) -> None:
    backend = make(config, weights)
    metrics = backend.train_step([batch], 1e-3, 0, skip_above=1e-3).fetch()
    assert not metrics.updated
    assert metrics.grad_norm > 1e-3
    assert same(backend.export(), weights)
    assert backend.train_step([batch], 1e-3, 0, skip_above=1e9).fetch().updated


@pytest.mark.parametrize("pieces", [(13,), (1,) * 13, (5, 1, 7), (12, 1)], ids=str)
def test_decoder_equals_the_whole_forward(
    pieces: tuple[int, ...], config: ModelConfig, weights: Parameters, batch: Batch, assert_close: Check
) -> None:
    backend = make(config, weights)
    logits = backend.logits(batch)
    decoder = backend.decoder(4)
    done = 0
    for count in pieces:
        got = decoder.feed(batch.tokens[:, done : done + count].astype(np.int64))
        done += count
        assert_close(f"after {done}", got, logits[:, done - 1], "float32")
    with pytest.raises(ValueError, match="outgrow the context of 13"):
        decoder.feed(batch.tokens[:, :1])


def test_what_is_recorded_for_a_token_is_that_of_every_token(
    config: ModelConfig, weights: Parameters, batch: Batch, assert_close: Check
) -> None:
    backend = make(config, weights)
    whole, decoder = backend.logits(batch), backend.decoder(4, room=14)
    decoder.feed(batch.tokens[:, :3])
    # like a CUDA graph, a trace keeps what came of values on the host: a length, a slot
    fourth = torch.from_numpy(decoder.fork(np.arange(4))._sequences.append(batch.tokens[:, 3:4]))
    decoder._extend_by_one = make_fx(decoder._extend_by_one)(fourth)
    for at in range(3, 13):
        got = decoder.feed(batch.tokens[:, at : at + 1])
        assert_close(f"token {at}", got, whole[:, at], "float32")


def test_refuses_what_would_read_foreign_memory(
    config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    backend = make(config, weights)
    for field, value in (("tokens", 151), ("tokens", -1), ("targets", 151), ("targets", -2)):
        values = getattr(batch, field).copy()
        values[1, 2] = value
        with pytest.raises(ValueError, match=f"{field} span .*, outside the vocabulary of 151"):
            backend.train_step([batch._replace(**{field: values})], 1e-3, 0)
    starts = np.zeros_like(batch.tokens)
    starts[0, 0] = 1
    with pytest.raises(ValueError, match=r"segment_starts\[0, 0\]=1, expected from 0 to the position itself"):
        backend.evaluate(batch._replace(segment_starts=starts))
    long = np.zeros((1, 14), np.int32)
    with pytest.raises(ValueError, match="context=13"):
        backend.evaluate(Batch(long, long))
    with pytest.raises(ValueError, match="at least one"):
        backend.train_step([], 1e-3, 0)
    with pytest.raises(ValueError, match="outside the vocabulary of 151"):
        backend.decoder(1).feed(np.array([[151]]))
    assert same(backend.export(), weights)


def test_triton_without_a_gpu_says_what_to_do(config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        TritonBackend(config, OptimizerConfig(), CPU, Options(kernels="triton"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_named(config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="no CUDA device"):
        TritonBackend(config, OptimizerConfig(), Runtime(device="gpu"), Options())
    assert not SPEC.has_gpu()


def test_profile_writes_a_trace_and_a_table(
    tmp_path: Path, config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    backend = make(config, weights)
    with backend.profile(tmp_path / "trace") as profile:
        backend.train_step([batch], 1e-3, 0).fetch()
    assert "aten::addmm" in profile.table()
    assert json.loads((tmp_path / "trace" / "trace.json").read_text())["traceEvents"]


def test_says_what_it_runs_on(config: ModelConfig, weights: Parameters) -> None:
    backend = make(config, weights)
    assert backend.choices()["kernels"] == "reference"
    assert backend.choices()["cuda_graph"] == "off"
    assert backend.choices()["torch"] == torch.__version__
    assert backend.device_name()
    assert backend.peak_memory_bytes() > 10_000_000
    backend.synchronize()


def test_no_autograd_anywhere(config: ModelConfig, weights: Parameters, batch: Batch) -> None:
    with torch.autograd.profiler.profile() as recorded:
        make(config, weights).train_step([batch], 1e-3, 0).fetch()
    names = {event.name for event in recorded.function_events}
    assert not {name for name in names if "backward" in name.lower()}


def test_forks_of_unequal_sequences_score_as_whole_rows(
    config: ModelConfig, weights: Parameters, assert_close: Check
) -> None:
    backend = make(config, weights)
    # contexts of 5, 0, 3 and 7 tokens that end together; endings of 6 (up to 13), 6, 1, 4 and 2 tokens
    stream, lengths = np.random.default_rng(4), np.array([5, 0, 3, 7])
    rows, counts = np.array([3, 0, 0, 1, 2]), (6, 6, 1, 4, 2)
    held = stream.integers(0, 151, (4, 7), dtype=np.int32)
    tokens, targets = stream.integers(0, 151, (2, 5, 6), dtype=np.int32)
    whole = Batch(np.zeros((5, 13), np.int32), np.full((5, 13), IGNORE, np.int32))
    for line, (row, count) in enumerate(zip(rows, counts, strict=True)):
        targets[line, count:] = IGNORE
        start, stop = lengths[row], lengths[row] + count
        whole.tokens[line, :stop] = [*held[row, 7 - start :], *tokens[line, :count]]
        whole.targets[line, start:stop] = targets[line, :count]
    decoder = backend.decoder(4, room=13, filling=7 - lengths)
    assert not decoder.log_probs(held, np.full_like(held, IGNORE)).any()
    got, want = decoder.fork(rows).log_probs(tokens, targets), backend.log_probs(whole)
    assert not got[targets == IGNORE].any()
    assert_close("endings", got[targets != IGNORE], want[whole.targets != IGNORE], "split")
    # the contexts are as they were
    assert np.array_equal(decoder.fork(rows).log_probs(tokens, targets), got)


def test_the_head_scores_targets_alone_and_gives_the_same(
    config: ModelConfig,
    weights: Parameters,
    packed: Batch,
    assert_close: Check,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, targets = make(config, weights), np.abs(packed.targets)
    every, scored, whole = backend.log_probs(packed._replace(targets=targets)), [], reference.linear_nll
    monkeypatch.setattr(reference, "linear_nll", lambda x, *rest: scored.append(len(x)) or whole(x, *rest))
    for rate in (0.0, 0.1, 0.5):
        few = np.random.default_rng(5).random(every.shape) < rate
        part = packed._replace(targets=np.where(few, targets, IGNORE))
        got = backend.log_probs(part)
        assert not got[~few].any()
        assert_close(f"log-probabilities at {rate}", got, np.where(few, every, 0.0), "split")
        # shares of an eighth of 52 positions
        assert scored.pop() == max(1, -(-few.sum() // 7)) * 7
        assert backend.evaluate(part) == (pytest.approx(-got.sum(), rel=1e-6), few.sum())
