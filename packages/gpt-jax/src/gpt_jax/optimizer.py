"""AdamW with clipping by global norm, as pure functions of trees.

    s = min(1, clip / |g|)
    m = b1 m + (1 - b1) s g,     v = b2 v + (1 - b2) (s g)^2
    p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)

Decay acts on matrices and embeddings only. Whether a step counts is decided on the device, so nothing
is read back to the host.

References:
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
"""

from __future__ import annotations

from dataclasses import fields

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Array, Bool, Float, Float32

from gpt_jax.mesh import MATRICES
from gpt_jax.model import Parameters


@struct.dataclass
class AdamWState:
    """Running means of the gradient and of its square, float32."""

    first: Parameters
    second: Parameters


STATE_NAMES = tuple(field.name for field in fields(AdamWState))
"""Names of the state's trees, where others store them."""


@struct.dataclass
class StepScalars:
    """What changes from step to step, as arrays, so that no step is compiled again.

    Attributes:
        lr: Learning rate.
        correction1: ``1 - beta1^t``, formed in float64.
        correction2: ``1 - beta2^t``, the same.
        skip_above: Largest gradient norm that still updates the weights.
    """

    lr: Float[Array, ""]
    correction1: Float[Array, ""]
    correction2: Float[Array, ""]
    skip_above: Float[Array, ""]


@struct.dataclass
class Outcome:
    """The gradient's norm before clipping, and whether the weights took the step."""

    grad_norm: Float[Array, ""]
    updated: Bool[Array, ""]


def adamw_init(params: Parameters) -> AdamWState:
    """Both moments at zero."""
    return AdamWState(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))


def step_scalars(
    config: OptimizerConfig, lr: float, step: int, skip_above: float
) -> Float32[np.ndarray, " 4"]:
    """The fields of ``StepScalars`` in one host array: one copy to the device.

    Args:
        step: Steps already taken, from 0.
    """
    corrections = [1.0 - beta ** (step + 1) for beta in (config.beta1, config.beta2)]
    return np.array([lr, *corrections, skip_above], np.float32)


def global_norm(gradients: Parameters) -> Float[Array, ""]:
    """Root of the sum of all squares."""
    return jnp.sqrt(jnp.stack([jnp.square(leaf).sum() for leaf in jax.tree.leaves(gradients)]).sum())


def adamw_update(
    params: Parameters,
    gradients: Parameters,
    state: AdamWState,
    config: OptimizerConfig,
    scalars: StepScalars,
) -> tuple[Parameters, AdamWState, Outcome]:
    """One step; everything stays as it was if the norm is not finite or above ``skip_above``.

    Args:
        params: Float32 parameters.
        gradients: Of the mean loss, unclipped.
    """
    norm = global_norm(gradients)
    updated = jnp.isfinite(norm) & (norm <= scalars.skip_above)
    scale = jnp.minimum(1.0, config.clip_norm / norm) if config.clip_norm else jnp.ones_like(norm)

    paths, treedef = jax.tree_util.tree_flatten_with_path(params)
    columns = (jax.tree.leaves(tree) for tree in (gradients, state.first, state.second))
    new = [
        tuple(
            jnp.where(updated, after, before)
            for after, before in zip(
                _update_leaf(path[-1].name, p, g * scale, m, v, config, scalars), (p, m, v), strict=True
            )
        )
        for (path, p), g, m, v in zip(paths, *columns, strict=True)
    ]
    new_params, first, second = (jax.tree.unflatten(treedef, column) for column in zip(*new, strict=True))
    return new_params, AdamWState(first, second), Outcome(norm, updated)


def _update_leaf(
    name: str, p: Array, g: Array, m: Array, v: Array, config: OptimizerConfig, scalars: StepScalars
) -> tuple[Array, Array, Array]:
    """AdamW on one array, whose gradient is clipped already."""
    m = config.beta1 * m + (1.0 - config.beta1) * g
    v = config.beta2 * v + (1.0 - config.beta2) * jnp.square(g)
    direction = (m / scalars.correction1) / (jnp.sqrt(v / scalars.correction2) + config.epsilon)
    if name in MATRICES:
        direction = direction + config.weight_decay * p
    return p - scalars.lr * direction, m, v
