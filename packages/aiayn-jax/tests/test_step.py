"""The optimizer, dropout, and what a step promises."""

from __future__ import annotations

from dataclasses import replace

import aiayn_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aiayn_gradients import PLAN, differentiate
from aiayn_jax import step as steps
from aiayn_jax.config import TransformerConfig
from aiayn_jax.layers import draw_masks
from aiayn_jax.model import init_parameters
from aiayn_jax.optimizer import AdamConfig, AdamScalars, adam_init, adam_scalars, adam_update
from aiayn_jax.parameters import PairBatch, Parameters, Site
from aiayn_jax.plan import make_plan
from aiayn_jax.step import check_batch, init_state, make_evaluate, make_step, send
from aiayn_jax.tree import from_named, to_named
from aiayn_oracle import SMALL, assert_close, make_batch, noisy_values
from gpt_jax.dropout import dropout_keys, unpack
from gpt_trainer import philox

DROPPING = replace(SMALL, dropout=0.2)


@pytest.fixture(scope="module")
def step() -> steps.Step:
    """Compiled once for all tests of this shape."""
    return make_step(SMALL, PLAN)


def fresh() -> steps.TrainingState:
    return init_state(from_named(noisy_values(), SMALL), PLAN)


def test_masks_are_those_of_the_shared_rule() -> None:
    """Each site of each layer its own; the decoder's layers follow the encoder's."""
    seed, shape, plan = 2**40 + 5, (2, 3, 12), make_plan(DROPPING, device="cpu")
    words = jnp.array([seed & 0xFFFFFFFF, seed >> 32], jnp.uint32)
    keys = dropout_keys(words, jnp.uint32(7), jnp.uint32(0), 4)
    first, masks = draw_masks(keys[2:], (Site.ATTENTION, Site.CROSS, Site.NETWORK), shape, plan)
    want = philox.dropout_keys(seed, 7, 0, 4)[2:]

    def mask(layer: int, site: Site) -> np.ndarray:
        return philox.dropout_mask(shape, (int(want[layer, site, 0]), int(want[layer, site, 1])), 0.2)

    assert first is not None
    assert np.array_equal(np.asarray(unpack(first, shape[2])), mask(0, Site.EMBEDDING))
    assert list(masks) == [Site.ATTENTION, Site.CROSS, Site.NETWORK]
    for site, got in masks.items():
        for layer in range(2):
            assert np.array_equal(np.asarray(unpack(got[layer], shape[2])), mask(layer, site))


def test_no_dropout_is_compiled_at_rate_0() -> None:
    def text(config: TransformerConfig) -> str:
        plan = make_plan(config, device="cpu")
        state = init_state(from_named(noisy_values(), SMALL), plan)
        rest = (jnp.float32(0.1), jnp.zeros(3, jnp.uint32), jnp.ones(3, jnp.float32))
        settings = {"plan": plan, "optimizer": AdamConfig()}
        traced = jax.make_jaxpr(lambda s, i: steps.train_step(s, i, *rest, **settings))
        return str(traced(state, send(make_batch(), plan)))

    assert "mulhi" in text(DROPPING)
    assert "mulhi" not in text(SMALL)


def test_two_steps_equal_adam_written_out(step: steps.Step) -> None:
    state = fresh()
    values = {n: v.astype(np.float64) for n, v in noisy_values().items()}
    first, second = ({n: np.zeros_like(v) for n, v in values.items()} for _ in range(2))
    for number in range(2):
        smoothed, nll, tree = differentiate(state.params)
        grads = to_named(tree, SMALL)
        lr = 1e-2 / (number + 1)
        state, metrics = step(state, make_batch(), lr, 0, number)
        norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in grads.values()))
        assert np.asarray(metrics).tolist() == pytest.approx([smoothed, nll, norm, 1.0], rel=1e-5)
        for name, g in grads.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.98 * second[name] + 0.02 * np.square(g.astype(np.float64))
            m, v = first[name] / (1 - 0.9 ** (number + 1)), second[name] / (1 - 0.98 ** (number + 1))
            values[name] -= lr * m / (np.sqrt(v) + 1e-9)
    got = to_named(state.params, SMALL)
    for name in values:
        if name.endswith("qkv_bias"):  # a key's bias has a gradient of rounding alone, which Adam blows up
            got[name], values[name] = (np.delete(v, slice(12, 24)) for v in (got[name], values[name]))
        assert_close(name, got[name], values[name], rel=2e-5)
    for name, moment in to_named(state.moments.second, SMALL).items():
        assert_close(name, moment, second[name], rel=1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing(step: steps.Step) -> None:
    state = fresh()
    broken = to_named(state.params, SMALL)
    params = state.params.replace(embedding=state.params.embedding.at[60, 3].set(jnp.inf))
    state, metrics = step(state.replace(params=params), make_batch(), 1e-2, 0, 0)
    assert not np.isfinite(np.asarray(metrics)[2])
    assert np.asarray(metrics)[3] == 0
    after = to_named(state.params, SMALL)
    assert after["embedding"][60, 3] == np.inf
    after["embedding"][60, 3] = broken["embedding"][60, 3]
    assert all(np.array_equal(broken[name], after[name]) for name in broken)
    assert not any(v.any() for v in to_named(state.moments.first, SMALL).values())


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_adam_leaves_everything_at_a_bad_gradient(bad: float) -> None:
    params = from_named(noisy_values(), SMALL)
    gradients = params.replace(embedding=params.embedding.at[7, 0].set(bad))
    scalars = AdamScalars(*jnp.asarray(adam_scalars(AdamConfig(), 1e-2, 0)))
    update = jax.jit(adam_update, static_argnames="config")
    new, moments, outcome = update(params, gradients, adam_init(params), config=AdamConfig(), scalars=scalars)
    assert not bool(outcome.updated)
    for name, value in to_named(new, SMALL).items():
        assert np.array_equal(value, noisy_values()[name])
    assert not any(
        value.any() for tree in moments.__dict__.values() for value in to_named(tree, SMALL).values()
    )


def test_steps_repeat_and_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traces = []
    original = steps.train_step
    monkeypatch.setattr(steps, "train_step", lambda *a, **k: (traces.append(1), original(*a, **k))[1])
    plan = make_plan(DROPPING, device="cpu")
    step = make_step(DROPPING, plan)
    runs = []
    for _ in range(2):
        state, losses = init_state(from_named(noisy_values(), SMALL), plan), []
        for number, seed in ((0, 3), (0, 3), (1, 3), (1, 2**33)):
            state, metrics = step(state, make_batch(), 0.0, seed, number)  # lr 0: only the masks differ
            losses.append(float(metrics[0]))
        runs.append(losses)
    assert len(traces) == 1
    first, same, later, other = runs[0]
    assert runs[0] == runs[1]
    assert first == same
    assert len({first, later, other}) == 3


def test_two_devices_take_the_steps_of_one() -> None:
    """Of five rows one has three and one two; masks belong to rows, wherever these are."""
    found = []
    for devices in (1, 2, 2):
        plan = make_plan(DROPPING, device="cpu", devices=devices)
        step, state = make_step(DROPPING, plan), init_state(from_named(noisy_values(), SMALL), plan)
        metrics = []
        for number in range(4):
            state, numbers = step(state, make_batch(), 1e-2, 3, number)
            metrics.append(np.asarray(numbers))
        found.append(np.array(metrics))
        assert len(state.params.embedding.sharding.device_set) == devices
    one, two, again = found
    assert np.array_equal(two, again)
    np.testing.assert_allclose(two, one, rtol=1e-6)


def test_evaluation_sums_the_plain_loss() -> None:
    total, count = make_evaluate(DROPPING, make_plan(DROPPING, device="cpu"))(
        from_named(noisy_values(), SMALL), make_batch()
    )
    assert count == 23
    assert total / count == pytest.approx(oracle.losses(noisy_values(), make_batch(), 0.1)[1], rel=1e-6)


@pytest.mark.slow
def test_a_small_model_learns_to_copy() -> None:
    config = TransformerConfig(
        vocab_size=12, n_layer=1, n_head=2, d_model=32, d_ff=64, dropout=0.0, longest=8
    )
    plan = make_plan(config, device="cpu")
    step, state = make_step(config, plan), init_state(init_parameters(config, 0), plan)
    rng, zero, losses = np.random.default_rng(0), np.zeros((32, 1), np.int32), []
    for number in range(300):
        words = rng.integers(1, 12, (32, 3)).astype(np.int32)
        source, target_in, target_out = (
            np.hstack(pair) for pair in ((words, zero), (zero, words), (words, zero))
        )
        batch = PairBatch(source, np.full(32, 4, np.int32), target_in, target_out)
        state, metrics = step(state, batch, 3e-3, 0, number)
        losses.append(float(metrics[1]))
    assert losses[0] > 2.4  # log 12
    assert np.mean(losses[-10:]) < 0.2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": np.full((5, 7), 61, np.int32)}, "source span 61..61, outside the vocabulary of 61"),
        ({"target_in": np.full((5, 9), -1, np.int32)}, "target_in span -1..-1"),
        ({"target_out": np.full((5, 9), -2, np.int32)}, "target_out span -2..-2"),
        ({"source_lengths": np.full(5, 8, np.int32)}, r"source_lengths span 8..8, outside 0..7"),
        ({"source": np.zeros((5, 33), np.int32)}, "33 positions, more than longest=32"),
        ({"target_in": np.zeros((5, 8), np.int32)}, "have shapes"),
        ({"target_out": np.full((5, 9), -1, np.int32)}, "no position of the batch has a target"),
    ],
    ids=["source", "target", "below", "length", "long", "shapes", "empty"],
)
def test_bad_batches_are_refused(changes: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_batch(make_batch()._replace(**changes), SMALL)


def test_parameters_survive_the_first_step(step: steps.Step) -> None:
    """A step takes over its state's memory, but not that of the parameters it was made from."""
    params: Parameters = from_named(noisy_values(), SMALL, PLAN.device)
    step(init_state(params, PLAN), make_batch(), 1e-2, 0, 0)
    assert np.array_equal(to_named(params, SMALL)["embedding"], noisy_values()["embedding"])
