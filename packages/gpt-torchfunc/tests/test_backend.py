"""The contract with the trainer: what goes in comes out, bad input is refused, runs repeat themselves."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from gpt_data.batch import IGNORE
from gpt_torchfunc.options import SPEC, Options
from gpt_trainer.backend import OptimizerConfig, Runtime
from gpt_trainer.parameters import init_parameters
from gpt_trainer.registry import find_backend


def same(a, b):
    return list(a) == list(b) and all(a[name].tobytes() == b[name].tobytes() for name in a)


def test_the_trainer_finds_it():
    assert find_backend("gpt-torchfunc") is SPEC


def test_export_gives_back_every_byte(build, weights, config):
    backend = build()
    state = {"first": init_parameters(config, 1), "second": init_parameters(config, 2)}
    backend.load(weights, state)
    assert same(backend.export(), weights)
    kept = backend.export_optimizer_state()
    assert kept.keys() == state.keys()
    assert all(same(kept[name], tree) for name, tree in state.items())
    backend.load(weights)
    assert not any(
        value.any() for tree in backend.export_optimizer_state().values() for value in tree.values()
    )


def test_exports_are_copies(build, batch, weights):
    backend = build()
    before, state = backend.export(), backend.export_optimizer_state()
    backend.train_step([batch], 0.1, 0).fetch()
    assert same(before, weights)
    assert not any(value.any() for value in state["first"].values())


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "dtype", "nan"])
@pytest.mark.parametrize("where", ["parameters", "state"])
def test_what_does_not_fit_is_refused_and_changes_nothing(fault, where, build, weights, config):
    backend, name = build(), "transformer.h.1.mlp.c_fc.weight"
    bad = init_parameters(config, 9)
    if fault == "missing":
        del bad[name]
    elif fault == "extra":
        bad["transformer.h.2.mlp.c_fc.weight"] = bad[name]
    else:
        bad[name] = {"shape": bad[name].T, "dtype": bad[name].astype(np.float64), "nan": bad[name] * np.nan}[
            fault
        ]
    good = init_parameters(config, 8)
    with pytest.raises(ValueError, match=r"mlp\.c_fc\.weight"):
        backend.load(*((bad, None) if where == "parameters" else (good, {"first": good, "second": bad})))
    assert same(backend.export(), weights)


@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16"}, {"dropout": 0.2}], ids=str)
def test_training_learns_one_batch_by_heart(settings, build, packed):
    backend = build(**settings)
    losses = [
        backend.train_step([packed.rows(0, 2), packed.rows(2, 4)], 2e-2, step).fetch().loss
        for step in range(20)
    ]
    assert losses[0] > 5.0
    assert losses[-1] < 0.5 * losses[0]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize("settings", [{}, {"precision": "bfloat16"}, {"dropout": 0.2, "seed": 3}], ids=str)
def test_two_runs_agree_bit_for_bit(settings, build, batch, packed):
    ends = []
    for _ in range(2):
        backend = build(**settings)
        metrics = [backend.train_step([(batch, packed)[i % 2]], 1e-2, i).fetch() for i in range(10)]
        ends.append((metrics, backend.export()))
    assert ends[0][0] == ends[1][0]
    assert same(ends[0][1], ends[1][1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_goes_on_from_its_exports_bit_for_bit(optimizer, build, batch):
    given = {"dropout": 0.1, "optimizer": OptimizerConfig(optimizer=optimizer)}
    straight = build(**given)
    for step in range(6):
        straight.train_step([batch], 1e-2, step)
    first, second = build(**given), build(**given)
    for step in range(3):
        first.train_step([batch], 1e-2, step)
    second.load(first.export(), first.export_optimizer_state())
    for step in range(3, 6):
        second.train_step([batch], 1e-2, step)
    assert same(second.export(), straight.export())


def test_the_seed_chooses_the_masks(build, batch):
    losses = {build(dropout=0.5, seed=seed).gradients([batch], 0)[0] for seed in (0, 1, 2**40)}
    assert len(losses) == 3


def test_a_step_reports_the_loss_and_norm_of_its_gradient(build, batch, assert_close):
    backend = build()
    loss, gradients = backend.gradients([batch], 0)
    metrics = backend.train_step([batch], 1e-2, 0).fetch()
    norm = np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in gradients.values()))
    assert_close("loss", metrics.loss, loss, rel=1e-6)
    assert_close("norm", metrics.grad_norm, norm, rel=1e-6)
    assert metrics.updated


def test_a_step_above_the_limit_is_left_out(build, batch, weights):
    backend = build()
    for batches in ([batch], [batch.rows(0, 2), batch.rows(2, 4)]):
        metrics = backend.train_step(batches, 1e-2, 0, skip_above=1e-6).fetch()
        assert not metrics.updated
        assert same(backend.export(), weights)


def test_evaluation_adds_up(build, packed, assert_close):
    backend = build(dropout=0.5)
    z = backend.logits(packed).astype(np.float64)
    z -= np.logaddexp.reduce(z, -1, keepdims=True)
    picked = np.take_along_axis(z, np.maximum(packed.targets, 0)[..., None], -1)[..., 0]
    want = np.where(packed.targets == IGNORE, 0.0, picked)
    assert_close("log-probabilities", backend.log_probs(packed), want, rel=1e-5)
    total, count = backend.evaluate(packed)
    assert count == packed.target_count
    assert_close("sum", total, -want.sum(), rel=1e-6)


def test_a_short_row_needs_no_padding(build, batch, assert_close):
    backend = build()
    short = batch._replace(tokens=batch.tokens[:1, :1], targets=batch.targets[:1, :1])
    assert_close("logits", backend.logits(short)[0, 0], backend.logits(batch)[0, 0], rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 151}, "tokens span .*, outside the vocabulary of 151"),
        ({"tokens": -1}, "tokens span -1.*, outside the vocabulary of 151"),
        ({"targets": 151}, "targets span .*, outside the vocabulary of 151"),
        ({"targets": -2}, "targets span -2.*, outside the vocabulary of 151"),
    ],
    ids=str,
)
def test_ids_outside_the_vocabulary_are_refused(change, message, build, batch, weights):
    backend = build()
    [(name, value)] = change.items()
    bad = batch._replace(**{name: getattr(batch, name).copy()})
    getattr(bad, name)[1, 2] = value
    calls = [backend.evaluate, backend.log_probs, backend.logits, lambda b: backend.train_step([b], 0.1, 0)]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(bad)
    assert same(backend.export(), weights)


def test_rows_longer_than_the_context_are_refused(build, batch, config):
    long = batch._replace(tokens=np.zeros((1, config.context + 1), np.int32))
    with pytest.raises(ValueError, match="context=13"):
        build().logits(long)


@pytest.mark.parametrize(
    ("runtime", "message"),
    [({"device": "tpu"}, "device='tpu'"), ({"precision": "float16"}, "precision='float16'")],
)
def test_an_unknown_runtime_is_refused(runtime, message, config):
    with pytest.raises(ValueError, match=message):
        SPEC.create(config, OptimizerConfig(), Runtime(**({"device": "cpu"} | runtime)), Options())


def test_an_unknown_option_is_refused(unchecked):
    for name in ("attention", "compile"):
        with pytest.raises(ValueError, match=f"{name}='fast' is not one of"):
            Options(**{name: "fast"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_gpu_that_is_not_there_is_refused(config):
    assert not SPEC.has_gpu()
    with pytest.raises(ValueError, match="no CUDA device"):
        SPEC.create(config, OptimizerConfig(), Runtime(device="gpu"), Options())


def test_compiling_without_a_compiler_is_refused(config, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"C\+\+ compiler"):
        SPEC.create(config, OptimizerConfig(), Runtime(device="cpu"), Options(compile="on"))


def test_results_may_differ_from_run_to_run_where_that_is_allowed(build):
    for deterministic in (False, True):
        said = build(deterministic=deterministic).choices()["deterministic"]
        assert said == ("on" if deterministic else "off")
        assert torch.are_deterministic_algorithms_enabled() is deterministic


def test_each_tile_of_masks_is_compiled(build, monkeypatch):
    """A context of 4,096 has sixteen; torch compiles a function for eight shapes unless it is told."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, options, **given: compile_(f, backend="eager", **given))
    spread = build(options=Options(compile="on"))._run.spread_tile
    for r in range(1, 17):
        words = torch.zeros(1, 1, 2, 4 * r, dtype=torch.int32)
        spread(torch.full((1, 1, 2, r), 0b101, dtype=torch.uint8), words)
        assert words.view(torch.bfloat16).sum() == 4 * r


def test_it_says_what_it_chose(build):
    choices = build(dropout=0.1, options=Options(attention="sdpa")).choices()
    assert choices["attention"].startswith("written in training")
    assert choices["compile"] == "off"
    assert choices["torch"] == torch.__version__
    assert build().device_name()
    assert build().peak_memory_bytes() > 10 * 2**20


# torch's profiler warns that a machine without a GPU has none
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_profile_lists_kernels_and_leaves_a_trace(build, batch, tmp_path):
    backend = build()
    with backend.profile(tmp_path / "profile") as profile:
        backend.train_step([batch], 0.1, 0).fetch()
    assert "mm" in profile.table()
    assert json.loads((tmp_path / "profile" / "trace.json").read_text())["traceEvents"]


def test_a_vocabulary_that_needs_no_padding(config, batch):
    whole = replace(config, vocab_size=256)
    backend = SPEC.create(whole, OptimizerConfig(), Runtime(device="cpu"), Options())
    start = init_parameters(whole, 0)
    backend.load(start)
    assert same(backend.export(), start)
    assert backend.logits(batch).shape == (4, 13, 256)


def test_the_head_scores_targets_alone_and_gives_the_same(build, packed, assert_close):
    backend = build()
    every, heads = backend.log_probs(packed._replace(targets=np.abs(packed.targets))), []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.mm.default and out.shape[-1] == backend._state.params.wte.shape[0]:
                heads.append(len(out))
            return out

    for rate in (0.0, 0.1, 0.5):
        few = np.random.default_rng(5).random(every.shape) < rate
        scored = packed._replace(targets=np.where(few, np.abs(packed.targets), IGNORE))
        with Watch():
            got = backend.log_probs(scored)
        assert not got[~few].any()
        assert_close(f"log-probabilities at {rate}", got, np.where(few, every, 0.0), rel=1e-6)
        # shares of an eighth of 52 positions
        assert heads.pop() == max(1, -(-few.sum() // 7)) * 7
        assert backend.evaluate(scored) == (pytest.approx(-got.sum(), rel=1e-6), few.sum())
