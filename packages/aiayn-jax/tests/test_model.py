"""The function itself: values, causality, filling, sizes, weights by name."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import aiayn_oracle as oracle
import jax
import numpy as np
import pytest
from aiayn_jax.averaging import average
from aiayn_jax.config import TransformerConfig, parameter_count, parameter_shapes, preset
from aiayn_jax.model import hidden_states, init_parameters, logits
from aiayn_jax.parameters import PairBatch
from aiayn_jax.plan import make_plan
from aiayn_jax.settings import RUN_PRESETS
from aiayn_jax.step import send
from aiayn_jax.tree import from_named, to_named
from aiayn_oracle import SMALL, assert_close, make_batch, noisy_values, relative_error

PLAN = make_plan(SMALL, device="cpu")


def states(batch: PairBatch, precision: str = "float32") -> np.ndarray:
    plan = make_plan(SMALL, device="cpu", precision=precision)
    run = jax.jit(hidden_states, static_argnames="plan")
    params = from_named(noisy_values(), SMALL, plan.device)
    return np.asarray(run(params, send(batch, plan), plan).astype(np.float32))


@pytest.fixture(scope="module")
def got() -> np.ndarray:
    return states(make_batch())


def test_hidden_states_equal_float64(got: np.ndarray) -> None:
    assert_close("hidden", got, oracle.hidden(noisy_values(), make_batch()), rel=1e-5)


def test_unrolled_layers_give_the_same(got: np.ndarray) -> None:
    plan = replace(PLAN, unroll=True)
    run = jax.jit(hidden_states, static_argnames="plan")
    unrolled = run(from_named(noisy_values(), SMALL), send(make_batch(), plan), plan)
    assert_close("hidden", np.asarray(unrolled), got, rel=1e-6)


def test_later_targets_leave_earlier_states_bit_equal(got: np.ndarray) -> None:
    batch = make_batch()
    changed = batch.target_in.copy()
    changed[:, 5:] = (changed[:, 5:] + 1) % 61
    after = states(batch._replace(target_in=changed))
    assert np.array_equal(got[:, :5], after[:, :5])
    assert not (got[:, 5:] == after[:, 5:]).all(-1).any()


def test_what_fills_up_changes_nothing(got: np.ndarray) -> None:
    """Other ids behind the sentences, and another sentence in the row that only fills the batch up."""
    batch = make_batch()
    filling = np.arange(7)[None] >= batch.source_lengths[:, None]
    assert filling.sum() > 10
    other = np.where(filling, 60 - batch.source, batch.source).astype(np.int32)
    target = batch.target_in.copy()
    target[4] = 60 - target[4]
    after = states(batch._replace(source=other, target_in=target))
    assert np.array_equal(got[:4], after[:4])
    assert np.isfinite(after).all()


def test_more_filling_changes_rounding_only(got: np.ndarray) -> None:
    batch = make_batch()
    source = np.pad(batch.source, ((0, 0), (0, 6)), constant_values=60)
    assert_close("hidden", states(batch._replace(source=source))[:4], got[:4], rel=1e-6)


def test_every_source_token_that_counts_is_seen(got: np.ndarray) -> None:
    batch = make_batch()
    for column in range(3):
        source = batch.source.copy()
        source[1, column] = (source[1, column] + 1) % 61
        after = states(batch._replace(source=source))
        assert not (got[1] == after[1]).all(-1).any(), f"position {column} of a source of 3"
        assert np.array_equal(got[[0, 2, 3]], after[[0, 2, 3]])


def test_bfloat16_is_near_float32(got: np.ndarray) -> None:
    error = relative_error(states(make_batch(), "bfloat16"), got)
    assert 1e-4 < error < 3e-2  # 8 bits of mantissa: not float32 under another name, and no worse than that


def test_head_is_the_embedding() -> None:
    values = noisy_values()
    z = np.asarray(logits(from_named(values, SMALL), send(make_batch(), PLAN), PLAN))
    assert z.shape == (5, 9, 128)
    want = oracle.hidden(values, make_batch()) @ values["embedding"].T.astype(np.float64)
    assert_close("logits", z[..., :61], want, rel=1e-5)


@pytest.mark.parametrize(("name", "millions"), [("base", 65), ("big", 213)])
def test_presets_have_the_papers_sizes(name: str, millions: int) -> None:
    """Table 3 of the paper, whose vocabulary is "about 37000": 63.1 and 214.2 million here."""
    config = preset(name, 37000)
    assert parameter_count(config) == pytest.approx(millions * 1e6, rel=0.03)
    assert parameter_count(config) == sum(int(np.prod(s)) for s in parameter_shapes(config).values())


def test_a_layer_has_torchs_number_of_weights() -> None:
    d, f = 12, 20
    attention, network, norm = 4 * (d * d + d), 2 * d * f + d + f, 2 * d
    encoder, decoder = attention + network + 2 * norm, 2 * attention + network + 3 * norm
    assert parameter_count(SMALL) == 61 * d + 2 * encoder + 2 * decoder


def test_initial_weights() -> None:
    config = TransformerConfig(vocab_size=500, n_layer=1, n_head=2, d_model=64, d_ff=128)
    values = to_named(init_parameters(config, 5), config)
    assert values["embedding"].std() == pytest.approx(64**-0.5, rel=0.02)
    for name, columns in (("attention.qkv_weight", 64), ("network.up_weight", 128)):
        weight, bound = values[f"encoder.0.{name}"], np.sqrt(6 / (64 + columns))
        assert 0.99 * bound < np.abs(weight).max() <= bound
        assert weight.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)
    assert all((v == 1).all() for n, v in values.items() if n.endswith("gain"))
    assert all((v == 0).all() for n, v in values.items() if n.endswith("bias"))
    again, other = (to_named(init_parameters(config, seed), config) for seed in (5, 6))
    assert all(np.array_equal(values[name], again[name]) for name in values)
    assert not np.array_equal(values["embedding"], other["embedding"])


def test_named_arrays_come_back_bit_equal() -> None:
    values = noisy_values()
    back = to_named(from_named(values, SMALL), SMALL)
    assert list(back) == list(parameter_shapes(SMALL))
    assert all(np.array_equal(values[name], back[name]) for name in values)


def test_wrong_arrays_are_named() -> None:
    values = noisy_values()
    wrong = {n: v for n, v in values.items() if n != "decoder.1.cross.out_bias"}
    wrong["encoder.0.attention.qkv_bias"] = values["encoder.0.attention.qkv_bias"][:-1]
    wrong["encoder.1.network.up_bias"] = np.full(20, np.nan, np.float32)
    wrong["decoder.0.network.norm_gain"] = np.ones(12)
    wrong["head"] = np.zeros((1, 1), np.float32)
    with pytest.raises(ValueError, match="do not fit the model") as caught:
        from_named(wrong, SMALL)
    for part in (
        "missing decoder.1.cross.out_bias (12,)",
        "encoder.0.attention.qkv_bias has shape (35,), expected (36,)",
        "encoder.1.network.up_bias holds NaN or infinity",
        "decoder.0.network.norm_gain has dtype float64, expected float32",
        "unexpected head (1, 1)",
    ):
        assert part in str(caught.value)


def test_average() -> None:
    ones = [{"a": np.full(3, x, np.float32), "b": np.array([[x]], np.float32)} for x in (1.0, 2.0, 6.0)]
    mean = average(ones)
    assert mean["a"].tolist() == [3.0, 3.0, 3.0]
    assert mean["b"].tolist() == [[3.0]]
    assert mean["a"].dtype == np.float32
    # in float32 the sum of 1 and 2^-24 forgets the second
    small = average([{"a": np.array([x], np.float32)} for x in (1.0, 2.0**-24, 2.0**-24, 0.0)])
    assert small["a"][0] == np.float32((1 + 2.0**-23) / 4)
    with pytest.raises(ValueError, match="empty"):
        average([])
    with pytest.raises(ValueError, match=r"checkpoint 1 differs in \['b'\]"):
        average([ones[0], {"a": ones[0]["a"]}])
    with pytest.raises(ValueError, match=r"checkpoint 1: a is float32 \(2,\)"):
        average([ones[0], {**ones[0], "a": np.zeros(2, np.float32)}])


def test_the_learning_rate_is_the_papers() -> None:
    rate = partial(RUN_PRESETS["base"].learning_rate, end=100_000)
    for count in (1, 2, 3999, 4000, 4001, 100_000):  # the paper's step_num counts from 1
        want = 512**-0.5 * min(count**-0.5, count * 4000**-1.5)
        assert rate(count - 1) == pytest.approx(want, rel=1e-12)
    assert rate(3999) == pytest.approx(6.99e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 13}, "d_model=13 is not an even multiple of n_head=2"),
        ({"n_head": 5}, "d_model=12 is not an even multiple of n_head=5"),
        ({"n_layer": 0}, "n_layer=0 is not positive"),
        ({"n_layer": 10**8}, "n_layer=100000000 is above 10000"),
        ({"dropout": 1.0}, "dropout=1.0 is not in"),
        ({"label_smoothing": -0.1}, "label_smoothing=-0.1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_sizes_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(ValueError, match="demo, small, base, big"):
        preset("large", 100)
    with pytest.raises(ValueError, match="use attention='written'"):
        make_plan(SMALL, device="cpu", attention="cudnn")
    # the shape checks, where they are on, refuse it first: by another error
    with pytest.raises((ValueError, TypeError), match="float16"):
        make_plan(SMALL, device="cpu", precision="float16")
