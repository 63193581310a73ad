"""One optimizer step as a pure function of the training state, compiled whole.

Every micro-batch's forward and backward pass, clipping and the update are one ``jax.jit``: several
micro-batches are the iterations of a ``lax.scan`` that carries the sums of losses and gradients. Several
devices share the rows of each micro-batch, and add up what each of them has summed: see ``mesh.py``.

Shapes: N micro-batches, B rows, T positions, L blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from gpt_trainer.backend import OptimizerConfig
from jax import lax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, UInt32

from gpt_jax.dropout import dropout_keys
from gpt_jax.loss import weighted_loss
from gpt_jax.mesh import AXIS, Layout, add_up, gather_early
from gpt_jax.model import Inputs, Parameters, Plan
from gpt_jax.optimizer import OptimizerState, StepScalars, optimizer_update


@struct.dataclass
class TrainingState:
    """What a step changes."""

    params: Parameters
    optimizer: OptimizerState


class Sums(NamedTuple):
    """Loss and gradient over the micro-batches so far, float32."""

    loss: Float[Array, ""]
    gradients: Parameters


def train_step(
    state: TrainingState,
    inputs: Inputs,
    weight: Float[Array, ""],
    counter: UInt32[Array, " 3"],
    scalars: Float[Array, " 4"],
    plan: Plan,
    config: OptimizerConfig,
    layout: Layout,
) -> tuple[TrainingState, Float[Array, " 3"]]:
    """Gradients of the mean loss over all targets, clip, update.

    Args:
        weight: One over the number of targets in the whole step.
        layout: Where the state lies.

    Returns:
        The new state; and loss, gradient norm, and 1 if the weights were updated.
    """
    sums = step_gradients(state.params, inputs, weight, counter, plan, layout)
    params, optimizer, outcome = optimizer_update(
        state.params, sums.gradients, state.optimizer, config, StepScalars(*scalars), plan.dtype
    )
    metrics = jnp.stack([sums.loss, outcome.grad_norm, outcome.updated.astype(sums.loss.dtype)])
    return layout.keep(TrainingState(params, optimizer)), metrics


def step_gradients(
    params: Parameters,
    inputs: Inputs,
    weight: Float[Array, ""],
    counter: UInt32[Array, " 3"],
    plan: Plan,
    layout: Layout,
) -> Sums:
    """Loss and gradient of a step, on one device or several; arguments as in ``train_step``."""
    if layout.count == 1:
        return device_gradients(params, inputs, weight, counter, plan)
    leaves, structure = jax.tree.flatten(params)
    divisions = layout.divisions(params)
    specs = [division.spec for division in divisions]

    def of_device(
        leaves: list[Array], inputs: Inputs, weight: Array, counter: Array
    ) -> tuple[Array, list[Array]]:
        early = jax.tree.unflatten(structure, gather_early(leaves, divisions, plan.dtype))
        loss, gradients = device_gradients(early, inputs, weight, counter, plan)
        return lax.psum(loss, AXIS), add_up(jax.tree.leaves(gradients), divisions)

    divided = jax.shard_map(
        of_device,
        mesh=layout.mesh,
        in_specs=(specs, P(None, AXIS), P(), P()),
        out_specs=(P(), specs),
        # whether a value is the same on all devices is not inferred: the sums above are written out
        check_vma=False,
    )
    loss, summed = divided(leaves, inputs, weight, counter)
    return Sums(loss, jax.tree.unflatten(structure, summed))


def device_gradients(
    params: Parameters,
    inputs: Inputs,
    weight: Float[Array, ""],
    counter: UInt32[Array, " 3"],
    plan: Plan,
) -> Sums:
    """Loss and gradient over all micro-batches of a device.

    Args:
        params: Float32 parameters.
        weight: One over the number of targets in the whole step.
    """

    def of_micro_batch(one: Inputs) -> Sums:
        keys = None
        if one.first_rows is not None:
            keys = dropout_keys(counter[:2], counter[2], one.first_rows[0], _depth(params))
        return Sums(*jax.value_and_grad(weighted_loss)(params, one, plan, weight, keys))

    def add(sums: Sums, one: Inputs) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, sums, of_micro_batch(one)), None

    if inputs.tokens.shape[0] == 1:  # no sums to carry
        return of_micro_batch(jax.tree.map(lambda leaf: leaf[0], inputs))
    sums, _ = lax.scan(add, jax.tree.map(jnp.zeros_like, Sums(weight, params)), inputs)
    return sums


def _depth(params: Parameters) -> int:
    """Number of blocks, L."""
    blocks = params.blocks
    return len(blocks) if isinstance(blocks, tuple) else blocks.ln1_gain.shape[0]
