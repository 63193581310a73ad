"""The loss in closed form and over chunks, and every gradient against finite differences."""

from __future__ import annotations

from dataclasses import replace

import aiayn_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from aiayn_gradients import PLAN, differentiate
from aiayn_jax.loss import smoothed_loss
from aiayn_jax.tree import from_named, to_named
from aiayn_oracle import SMALL, assert_close, make_batch, noisy_values
from gpt_data.batch import IGNORE


@pytest.fixture(scope="module")
def found() -> tuple[float, float, dict[str, np.ndarray]]:
    smoothed, nll, gradients = differentiate(from_named(noisy_values(), SMALL))
    return smoothed, nll, to_named(gradients, SMALL)


def test_losses_and_gradients_equal_float64(found: tuple[float, float, dict[str, np.ndarray]]) -> None:
    """Every tensor, along a direction of its own, by finite differences of the oracle."""
    values = {n: v.astype(np.float64) for n, v in noisy_values().items()}
    batch, rng, size = make_batch(), np.random.default_rng(7), 1e-5
    smoothed, nll, gradients = found
    assert (smoothed, nll) == pytest.approx(oracle.losses(values, batch, 0.1), rel=1e-6)
    for name, gradient in gradients.items():
        # half the direction is the gradient's own, so that the product does not vanish
        direction = rng.normal(size=gradient.shape)
        direction = direction / np.linalg.norm(direction) + gradient / np.linalg.norm(gradient)
        ahead, behind = (
            oracle.losses(values | {name: values[name] + sign * size * direction}, batch, 0.1)[0]
            for sign in (1, -1)
        )
        want = (ahead - behind) / (2 * size)
        # 1e-9: what a difference of losses near 4 leaves of float64 after division by 2e-5
        assert np.vdot(direction, gradient) == pytest.approx(want, rel=5e-5, abs=1e-9), name


def test_keys_have_no_bias(found: tuple[float, float, dict[str, np.ndarray]]) -> None:
    """A constant added to all keys leaves a softmax as it is."""
    for name in ("encoder.0.attention", "decoder.1.attention", "decoder.0.cross"):
        of_q, of_k, of_v = np.abs(found[2][f"{name}.qkv_bias"].reshape(3, 12)).max(-1)
        assert of_k < 1e-6 < 1e-4 < min(of_q, of_v)


def losses_of(hidden: np.ndarray, embedding: np.ndarray, targets: list[int], **changes: object) -> tuple:
    plan = replace(PLAN, **({"vocab_size": len(embedding)} | changes))
    arrays = (jnp.asarray(hidden, plan.dtype), jnp.asarray(embedding, jnp.float32))
    weight = jnp.float32(1 / sum(target != IGNORE for target in targets))
    return smoothed_loss(*arrays, jnp.asarray(targets, jnp.int32), weight, plan)


def test_equal_logits_cost_log_vocabulary() -> None:
    losses = losses_of(np.ones((3, 4)), np.zeros((61, 4)), [5, IGNORE, 60])
    assert [float(x) for x in losses] == pytest.approx([np.log(61)] * 2, rel=1e-6)


def test_smoothed_loss_is_least_at_the_smoothed_distribution() -> None:
    """There it is that distribution's entropy, and its gradient vanishes; the plain loss still falls."""
    ids, target, e = 7, 3, 0.1
    q = np.full(ids, e / ids)
    q[target] += 1 - e
    logits = np.log(q)[None] + 2.5  # a constant on all logits changes nothing
    smoothed, nll = losses_of(logits, np.eye(ids), [target])
    assert float(smoothed) == pytest.approx(-(q * np.log(q)).sum(), rel=1e-6)
    assert float(nll) == pytest.approx(-np.log(q[target]), rel=1e-6)
    gradient = jax.grad(lambda h: smoothed_loss(h, *rest)[0])
    plan = replace(PLAN, vocab_size=ids)
    rest = (jnp.eye(ids), jnp.array([target], jnp.int32), jnp.float32(1), plan)
    assert np.abs(gradient(jnp.asarray(logits, jnp.float32))).max() < 1e-7
    assert np.abs(gradient(jnp.asarray(logits + np.eye(ids)[[target]], jnp.float32))).max() > 1e-2


@pytest.mark.parametrize("wide", [True, False], ids=["wide", "narrow"])
def test_head_over_chunks_equals_one_chunk(wide: bool) -> None:
    """Chunks of five tokens, the last short; the padding rows of the vocabulary learn nothing."""
    rng = np.random.default_rng(0)
    hidden, embedding = (jnp.asarray(rng.normal(size=(rows, 12)), jnp.float32) for rows in (23, 128))
    targets = jnp.asarray(rng.integers(IGNORE, 61, 23), jnp.int32)

    def answer(chunk: int) -> tuple:
        plan = replace(PLAN, chunk=chunk, wide_logits=wide)
        of = jax.value_and_grad(
            lambda h, e: smoothed_loss(h, e, targets, jnp.float32(1 / 23), plan)[0], (0, 1)
        )
        return of(hidden, embedding)

    (loss, grads), (want, want_grads) = answer(61 * 5), answer(10**6)
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    for name, got, expected in zip(("d_hidden", "d_embedding"), grads, want_grads, strict=True):
        assert_close(name, got, expected, rel=1e-6)
    d_embedding = np.asarray(grads[1])
    assert d_embedding[:61].all()
    assert not d_embedding[61:].any()


def test_narrow_logits_are_near_wide_ones() -> None:
    rng = np.random.default_rng(0)
    hidden, embedding = rng.normal(size=(64, 16)), rng.normal(size=(128, 16))
    targets = rng.integers(0, 128, 64).tolist()
    wide, narrow = (
        float(losses_of(hidden, embedding, targets, dtype="bfloat16", wide_logits=w)[0])
        for w in (True, False)
    )
    assert narrow == pytest.approx(wide, rel=2e-3)
