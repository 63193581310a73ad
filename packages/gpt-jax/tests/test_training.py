"""Gradients, the optimizer, dropout, and what a step promises."""

from __future__ import annotations

from dataclasses import replace

import gpt_jax_oracle as oracle
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gpt_data.batch import IGNORE
from gpt_jax.attention import fused_scale
from gpt_jax.backend import JaxBackend
from gpt_jax.dropout import draw_tile, dropout, dropout_keys, unpack
from gpt_jax.gathering import sum_by_index
from gpt_jax.loss import head_loss
from gpt_jax.model import Plan
from gpt_jax.optimizer import StepScalars, optimizer_update, step_scalars
from gpt_jax.tree import named_leaves
from gpt_jax_toy import SMALL, assert_close, build, make_batch, noisy_parameters
from gpt_trainer import philox
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.parameters import init_parameters


@pytest.fixture(scope="module")
def scan_gradients(backend: JaxBackend) -> tuple[float, dict[str, np.ndarray]]:
    return backend.gradients([make_batch(2, 19, packed=True)], 0)


def test_gradients_equal_finite_differences(scan_gradients: tuple[float, dict[str, np.ndarray]]) -> None:
    """Every tensor, along a direction of its own, by the float64 oracle."""
    loss, gradients = scan_gradients
    values = {n: v.astype(np.float64) for n, v in noisy_parameters(SMALL).items()}
    batch, rng, step = make_batch(2, 19, packed=True), np.random.default_rng(7), 1e-5
    assert loss == pytest.approx(oracle.mean_loss(values, batch, SMALL), rel=1e-6)
    for name, gradient in gradients.items():
        # half the direction is the gradient's own, so that the product does not vanish
        direction = rng.normal(size=gradient.shape)
        direction = direction / np.linalg.norm(direction) + gradient / np.linalg.norm(gradient)
        ahead, behind = (
            oracle.mean_loss(values | {name: values[name] + sign * step * direction}, batch, SMALL)
            for sign in (1, -1)
        )
        want = (ahead - behind) / (2 * step)
        assert np.vdot(direction, gradient) == pytest.approx(want, rel=2e-5), name


def test_unrolled_layers_give_the_same_gradients(
    scan_gradients: tuple[float, dict[str, np.ndarray]],
) -> None:
    _, gradients = build(layers="unroll").gradients([make_batch(2, 19, packed=True)], 0)
    for name, want in scan_gradients[1].items():
        assert_close(name, gradients[name], want, rel=1e-6)


def test_split_into_micro_batches_changes_rounding_only() -> None:
    # a fresh model's weights: those of the other tests are four times as large, and so ill-conditioned that
    # on a CPU with AVX-512 the whole batch's own gradients are 1.4e-6 from float64
    backend, batch = build(), make_batch(2, 19, packed=True)
    backend.load(init_parameters(SMALL, 0))
    loss, gradients = backend.gradients([batch.rows(0, 1), batch.rows(1, 2)], 0)
    whole_loss, whole = backend.gradients([batch], 0)
    assert loss == pytest.approx(whole_loss, rel=1e-6)
    for name, want in whole.items():
        assert_close(name, gradients[name], want, rel=1e-6)


def test_head_loss_over_chunks_equals_one_chunk() -> None:
    rng = np.random.default_rng(0)
    hidden, wte = (jnp.asarray(rng.normal(size=(rows, 12)), jnp.float32) for rows in (23, 128))
    targets = jnp.asarray(rng.integers(IGNORE, 61, 23), jnp.int32)

    def answer(chunk: int) -> tuple:
        plan = Plan(2, 61, chunk=chunk)
        return jax.value_and_grad(head_loss, (0, 1))(hidden, wte, targets, jnp.float32(1 / 23), plan)

    (loss, grads), (want, want_grads) = answer(61 * 5), answer(10**6)  # chunks of five tokens, the last short
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    for name, got, expected in zip(("d_hidden", "d_wte"), grads, want_grads, strict=True):
        assert_close(name, got, expected, rel=1e-6)
    assert not np.asarray(grads[1])[61:].any(), "padding rows of the vocabulary have a gradient"


# around one tile of rows; 700: several tiles, with an index that fills some of them alone
@pytest.mark.parametrize("count", [1, 2, 127, 128, 129, 700])
def test_sum_by_index(count: int) -> None:
    rng = np.random.default_rng(count)
    values, index = rng.normal(size=(count, 3)).astype(np.float32), rng.integers(0, 5, count).astype(np.int32)
    index[count // 4 :] = np.where(rng.random(count - count // 4) < 0.9, 7, index[count // 4 :])
    want = np.zeros((9, 3))
    np.add.at(want, index, values)
    assert_close("sums", sum_by_index(jnp.asarray(values), jnp.asarray(index), 9), want, rel=1e-6)


def test_masks_are_bit_equal_to_the_shared_ones() -> None:
    rate, seed, first = 0.3, 2**40 + 5, 6
    words = jnp.array([seed & 0xFFFFFFFF, seed >> 32], jnp.uint32)
    keys = dropout_keys(words, jnp.uint32(7), jnp.uint32(first), 3)
    assert np.array_equal(np.asarray(keys), philox.dropout_keys(seed, 7, first, 3))
    key = int(keys[1, 2, 0]), int(keys[1, 2, 1])
    # 18: two columns of the last call's four
    got = dropout(jnp.ones((2 * 19, 18)), keys[1, 2], rate, 2).reshape(2, 19, 18)
    assert np.array_equal(np.asarray(got) > 0, philox.dropout_mask((2, 19, 18), key, rate, first))
    assert np.unique(got).tolist() == [0.0, np.float32(1.0 / 0.7)]
    tile = np.asarray(unpack(draw_tile((2, 3, 19), 5, 12, keys[1, 2], rate), 12))
    assert np.array_equal(tile, philox.dropout_mask((2, 3, 19, 19), key, rate, first)[:, :, 5:12, :12])


def test_step_equals_numpy_adamw(backend: JaxBackend) -> None:
    """Two steps with clipping, against the rule written out in float64."""
    trained, c = build(), backend._optimizer
    values = {n: v.astype(np.float64) for n, v in noisy_parameters(SMALL).items()}
    first, second = ({n: np.zeros_like(v) for n, v in values.items()} for _ in range(2))
    for step in range(2):
        batch, lr = make_batch(2, 19, packed=True, seed=step), 1e-2 / (step + 1)
        _, gradients = trained.gradients([batch], step)
        metrics = trained.train_step([batch], lr, step).fetch()
        norm = np.sqrt(sum(np.square(g.astype(np.float64)).sum() for g in gradients.values()))
        assert metrics.grad_norm == pytest.approx(norm, rel=1e-5)
        assert metrics.updated
        assert norm > 1.0, "clipping is not exercised"
        for name, p in values.items():
            g = gradients[name] / norm
            first[name] = c.beta1 * first[name] + (1 - c.beta1) * g
            second[name] = c.beta2 * second[name] + (1 - c.beta2) * g**2
            m, v = first[name] / (1 - c.beta1 ** (step + 1)), second[name] / (1 - c.beta2 ** (step + 1))
            decay = c.weight_decay * p if p.ndim == 2 else 0.0
            values[name] = p - lr * (m / (np.sqrt(v) + c.epsilon) + decay)
    moments = trained.export_optimizer_state()
    for name, got in trained.export().items():
        assert_close(name, got, values[name], rel=1e-5)
        assert_close(name, moments["second"][name], second[name], rel=1e-5)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_muon_moves_each_matrix_by_an_orthogonal_step_and_the_rest_as_adamw(layers: str) -> None:
    """Queries, keys and values each for itself; maps that widen move further, by the root of their shape."""
    adamw = OptimizerConfig(weight_decay=0.0)
    muon = replace(adamw, optimizer="muon", muon_lr_factor=2.0)
    (trained, ends), (_, others) = (
        (backend, backend.export()) for backend in (stepped(layers, config) for config in (muon, adamw))
    )
    state = trained.export_optimizer_state()
    matrices = {name for name in ends if ".h." in name and ends[name].ndim == 2}
    assert set(state["momentum"]) == matrices
    assert set(state["first"]) == set(state["second"]) == set(ends) - matrices
    for name, before in noisy_parameters(SMALL).items():
        if name not in matrices:
            assert_close(name, ends[name], others[name], rel=1e-7)
            continue
        for step in np.split(before - ends[name], 3 if "c_attn" in name else 1, axis=1):
            sizes = np.linalg.svd(step / 0.02)[1] / max(1.0, step.shape[1] / step.shape[0]) ** 0.5
            # a gradient may lack a direction or two
            assert 0.5 < np.median(sizes) <= sizes.max() < 1.25, name


def stepped(layers: str, optimizer: OptimizerConfig) -> JaxBackend:
    """After one step, and what it keeps loaded again."""
    backend = build(layers=layers, optimizer=optimizer)
    backend.train_step([make_batch(2, 19)], 1e-2, 0)
    backend.load(backend.export(), backend.export_optimizer_state())
    return backend


def test_steps_skip_repeat_and_compile_once() -> None:
    config = replace(SMALL, dropout=0.2)
    runs = []
    for _ in range(2):
        backend = build(config)
        batch = make_batch(2, 19)
        before = backend.export()
        skipped = backend.train_step([batch], 1e-2, 0, skip_above=1e-6).fetch()
        assert not skipped.updated
        compiled = backend._train_step._cache_size()  # of all shapes that this process has seen
        assert all(np.array_equal(before[name], value) for name, value in backend.export().items())
        losses = [backend.train_step([batch], 1e-2, step).fetch().loss for step in range(3)]
        assert losses[0] == skipped.loss, "the same step has another mask"
        assert len(set(losses)) == 3
        assert backend._train_step._cache_size() == compiled
        runs.append((losses, backend.export()))
    assert runs[0][0] == runs[1][0]
    assert all(np.array_equal(runs[0][1][name], value) for name, value in runs[1][1].items())


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(poison: float) -> None:
    state, config = build()._state, OptimizerConfig()
    gradients = jax.tree.map(jnp.ones_like, state.params)
    gradients = gradients.replace(wpe=gradients.wpe.at[3, 2].set(poison))
    scalars = StepScalars(*jnp.asarray(step_scalars(config, 0.1, 0, np.inf)))
    *after, outcome = optimizer_update(state.params, gradients, state.optimizer, config, scalars)
    assert not outcome.updated
    before = state.params, state.optimizer
    assert all(map(np.array_equal, jax.tree.leaves(before), jax.tree.leaves(after)))


def test_muons_second_step_is_the_rule_written_out() -> None:
    """In float64: only from the second step on does the momentum differ from the gradient."""
    config = OptimizerConfig(optimizer="muon", muon_lr_factor=2.0, weight_decay=0.1, clip_norm=0.0)
    state, draw = build(optimizer=config)._state, np.random.default_rng(0)
    params, kept = state.params, state.optimizer
    scalars = StepScalars(*jnp.asarray(step_scalars(config, 0.1, 0, np.inf)))
    momentum = {name: np.zeros(leaf.shape) for name, leaf in kept["momentum"].items()}
    for _ in range(2):
        drawn = jax.tree.map(lambda leaf: jnp.asarray(draw.standard_normal(leaf.shape), jnp.float32), params)
        new, kept, _ = optimizer_update(params, drawn, kept, config, scalars)
        before, after, slopes = map(named_leaves, (params, new, drawn))
        for name in momentum:
            g, p = (np.asarray(leaves[name], np.float64) for leaves in (slopes, before))
            momentum[name] = 0.95 * momentum[name] + g
            parts = np.split(g + 0.95 * momentum[name], 3 if "qkv" in name else 1, axis=-1)
            wide = max(1.0, parts[0].shape[-1] / parts[0].shape[-2]) ** 0.5
            step = wide * np.concatenate([newton_schulz(part) for part in parts], axis=-1) + 0.1 * p
            assert_close(name, np.asarray(after[name], np.float64) - p, -0.2 * step, rel=1e-4)
        params = new


def newton_schulz(x: np.ndarray) -> np.ndarray:
    x = x / np.linalg.norm(x, axis=(-2, -1), keepdims=True)
    for _ in range(5):
        gram = x @ np.swapaxes(x, -1, -2)
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_zero_gradients_only_decay() -> None:
    """A norm of 0 is not above the limit of 0, and Muon's matrices of zeros stay so."""
    config = OptimizerConfig(optimizer="muon", muon_lr_factor=2.0, weight_decay=0.1)
    state = build(optimizer=config)._state
    zero = jax.tree.map(jnp.zeros_like, state.params)
    scalars = StepScalars(*jnp.asarray(step_scalars(config, 0.1, 0, 0.0)))
    new, _, outcome = optimizer_update(state.params, zero, state.optimizer, config, scalars)
    assert outcome.updated
    after = named_leaves(new)
    for name, before in named_leaves(state.params).items():
        rate = 0.2 if name in state.optimizer["momentum"] else 0.1 * (name in ("wte", "wpe"))
        assert_close(name, after[name], np.asarray(before) * (1 - 0.1 * rate), rel=1e-6)


@pytest.mark.parametrize("layers", ["scan", "unroll"])
def test_export_returns_what_was_loaded(layers: str) -> None:
    backend, values = build(layers=layers), noisy_parameters(SMALL)
    assert all(np.array_equal(values[name], value) for name, value in backend.export().items())
    assert list(backend.export()) == list(values)
    bad = values | {"transformer.wpe.weight": values["transformer.wpe.weight"][:-1]}
    with pytest.raises(ValueError, match=r"wpe\.weight has shape"):
        backend.load(bad)


def test_fused_calls_differ_to_xla_and_not_to_the_kernel() -> None:
    # XLA runs two equal deterministic calls of cuDNN's backward kernel wrongly; the kernel reads float32
    scales = [fused_scale(64, layer) for layer in range(96)]
    assert len(set(scales)) == 96
    assert {np.float32(scale) for scale in scales} == {np.float32(0.125)}
