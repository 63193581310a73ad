"""One optimizer step as a pure function of the training state, compiled whole.

Shapes: B rows, S source positions, T target positions, L layers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gpt_data.batch import IGNORE
from gpt_data.checks import check_ids
from gpt_jax.device import compiler_options
from gpt_jax.dropout import dropout_keys
from gpt_jax.mesh import AXIS
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt32

from aiayn_jax.config import TransformerConfig
from aiayn_jax.loss import total_nll, weighted_losses
from aiayn_jax.optimizer import AdamConfig, AdamScalars, AdamState, adam_init, adam_scalars, adam_update
from aiayn_jax.parameters import Inputs, PairBatch, Parameters
from aiayn_jax.plan import Plan


@struct.dataclass
class TrainingState:
    """What a step changes."""

    params: Parameters
    moments: AdamState


Step = Callable[[TrainingState, PairBatch, float, int, int], tuple[TrainingState, Array]]


def init_state(params: Parameters, plan: Plan, moments: AdamState | None = None) -> TrainingState:
    """What the first step takes, as a copy on each of the plan's devices: a step uses its memory again.

    Args:
        moments: Of an earlier run; ``None`` means zeros.
    """
    state = TrainingState(params, adam_init(params) if moments is None else moments)
    return jax.device_put(jax.tree.map(jnp.copy, state), plan.layout.sharding(P()))


def make_step(config: TransformerConfig, plan: Plan, optimizer: AdamConfig | None = None) -> Step:
    """The compiled step ``(state, batch, lr, seed, step_index) -> (state, metrics)``.

    The old state's memory is used for the new one. ``seed`` and ``step_index``, the steps already taken,
    select the dropout masks. ``metrics`` stays on the device until it is read: smoothed loss and negative
    log-likelihood for each target, the gradient's norm, and 1 if the weights were updated, or 0 if
    the gradient was not finite. Each shape of a batch is compiled once.

    Args:
        optimizer: Adam's settings; ``None`` means the paper's.
    """
    settings = optimizer or AdamConfig()
    compiled = _compile(plan, settings)

    def step(
        state: TrainingState, batch: PairBatch, lr: float, seed: int, step_index: int
    ) -> tuple[TrainingState, Array]:
        check_batch(batch, config)
        weight = np.float32(1.0 / np.count_nonzero(batch.target_out != IGNORE))
        counter = np.array([seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, step_index], np.uint32)
        inputs = send(batch, plan)
        with plan.layout.entered():
            return compiled(state, inputs, weight, counter, adam_scalars(settings, lr, step_index))

    return step


def _compile(plan: Plan, optimizer: AdamConfig) -> Callable:
    return jax.jit(
        partial(train_step, plan=plan, optimizer=optimizer),
        donate_argnames="state",
        # XLA divides the work by where the rows lie, and adds the gradients up for it
        out_shardings=plan.layout.sharding(P()),
        compiler_options=_options(plan),
    )


def _options(plan: Plan) -> dict[str, bool | str]:
    several = plan.layout.count > 1
    return compiler_options(plan.device, deterministic=plan.deterministic, several=several)


def train_step(
    state: TrainingState,
    inputs: Inputs,
    weight: Float[Array, ""],
    counter: UInt32[Array, " 3"],
    scalars: Float[Array, " 3"],
    *,
    plan: Plan,
    optimizer: AdamConfig,
) -> tuple[TrainingState, Float[Array, " 4"]]:
    """Gradient of the smoothed mean loss, then Adam."""
    keys = None
    if plan.dropout:
        depth = 2 * state.params.encoder.network.up_bias.shape[0]
        keys = dropout_keys(counter[:2], counter[2], jnp.uint32(0), depth)
    differentiate = jax.value_and_grad(weighted_losses, has_aux=True)
    (smoothed, nll), gradients = differentiate(state.params, inputs, plan, weight, keys)
    params, moments, outcome = adam_update(
        state.params, gradients, state.moments, optimizer, AdamScalars(*scalars)
    )
    metrics = jnp.stack([smoothed, nll, outcome.grad_norm, outcome.updated.astype(nll.dtype)])
    return TrainingState(params, moments), metrics


def make_evaluate(
    config: TransformerConfig, plan: Plan
) -> Callable[[Parameters, PairBatch], tuple[float, int]]:
    """``(params, batch) -> (sum of negative log-likelihoods in nats, number of targets)``.

    Neither dropout nor smoothing acts; each shape of a batch is compiled once.
    """
    compiled = jax.jit(partial(total_nll, plan=plan), compiler_options=_options(plan))

    def evaluate(params: Parameters, batch: PairBatch) -> tuple[float, int]:
        check_batch(batch, config)
        nll = compiled(params, send(batch, plan))
        return float(nll), int(np.count_nonzero(batch.target_out != IGNORE))

    return evaluate


def send(batch: PairBatch, plan: Plan) -> Inputs:
    """The batch on the plan's devices, each with as many of its rows; empty ones fill it up."""
    layout = plan.layout
    empty = -len(batch.source) % layout.count
    fillings = {"target_out": IGNORE}
    full = (
        np.pad(array, [(0, empty), *[(0, 0)] * (array.ndim - 1)], constant_values=fillings.get(name, 0))
        for name, array in batch._asdict().items()
    )
    return Inputs(*jax.device_put(list(full), layout.sharding(P(AXIS))))


def check_batch(batch: PairBatch, config: TransformerConfig) -> None:
    """Refuse on the host what would go wrong in silence on the device.

    Raises:
        ValueError: If shapes do not belong together, a sentence is too long, an id or length is out of
            range, or there is no target.
    """
    source, lengths, target_in, target_out = batch
    check_source(source, lengths, config)
    if target_in.shape != target_out.shape or target_in.ndim != 2 or len(target_in) != len(source):
        shapes = [array.shape for array in batch]
        raise ValueError(f"source, lengths, target_in and target_out have shapes {shapes}")
    if not 1 <= target_in.shape[1] <= config.longest:
        raise ValueError(f"target_in has {target_in.shape[1]} positions, not within 1..{config.longest}")
    check_ids("target_in", target_in, 0, config.vocab_size)
    check_ids("target_out", target_out, IGNORE, config.vocab_size)
    if not (target_out != IGNORE).any():
        raise ValueError("no position of the batch has a target")


def check_source(source: np.ndarray, lengths: np.ndarray, config: TransformerConfig) -> None:
    """Refuse source sentences that do not fit the model.

    Raises:
        ValueError: If shapes do not belong together, or a sentence, an id or a length is out of range.
    """
    if source.ndim != 2 or lengths.shape != source.shape[:1] or not source.size:
        raise ValueError(f"source and its lengths have shapes {source.shape} and {lengths.shape}")
    if source.shape[1] > config.longest:
        raise ValueError(f"source has {source.shape[1]} positions, more than longest={config.longest}")
    check_ids("source", source, 0, config.vocab_size)
    if lengths.min() < 0 or lengths.max() > source.shape[1]:
        raise ValueError(
            f"source_lengths span {lengths.min()}..{lengths.max()}, outside 0..{source.shape[1]}"
        )
