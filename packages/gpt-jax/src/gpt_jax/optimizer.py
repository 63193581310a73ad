"""AdamW, or Muon for the blocks' matrices, with clipping by global norm, as pure functions of trees.

    s = min(1, clip / |g|)

AdamW, with decay on matrices and embeddings only:

    m = b1 m + (1 - b1) s g,     v = b2 v + (1 - b2) (s g)^2
    p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)

Muon, whose learning rate is ``muon_lr_factor`` times as high:

    m = mu m + s g,     O = orthogonalize(s g + mu m)
    p = p - lr_muon (sqrt(max(1, columns / rows)) O + decay p)

Each leaf has one rule, told by what the state keeps of it. Whether a step counts is decided on the device,
so nothing is read back to the host. Shapes: N matrices, R rows, C columns.

References:
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gpt_trainer.backend import OptimizerConfig
from jax import lax
from jaxtyping import Array, Bool, Float, Float32

from gpt_jax.mesh import EMBEDDINGS, MATRICES
from gpt_jax.model import Parameters
from gpt_jax.precision import product
from gpt_jax.tree import Leaves, field_of, named_leaves

BLOCK_MATRICES = MATRICES - EMBEDDINGS
"""Leaves that Muon may take: each is a matrix, or one of each block."""

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS, NEWTON_SCHULZ = 5, (3.4445, -4.7750, 2.0315)
NORM_FLOOR = 1e-7
"""Added to a matrix's norm, so that one of zeros stays so."""

OptimizerState = dict[str, Leaves]
"""Float32 leaves by the name of what is kept: ``first`` and ``second`` (AdamW), ``momentum`` (Muon)."""


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


def optimizer_init(params: Parameters, config: OptimizerConfig) -> OptimizerState:
    """Zeros for every leaf, as its rule wants them."""
    leaves = named_leaves(params)
    muon = {name for name in leaves if config.optimizer == "muon" and field_of(name) in BLOCK_MATRICES}
    kept = {"first": leaves.keys() - muon, "second": leaves.keys() - muon, "momentum": muon}
    return {
        tree: {name: jnp.zeros_like(leaves[name]) for name in leaves if name in names}
        for tree, names in kept.items()
        if names
    }


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


def optimizer_update(
    params: Parameters,
    gradients: Parameters,
    state: OptimizerState,
    config: OptimizerConfig,
    scalars: StepScalars,
    dtype: str = "float32",
) -> tuple[Parameters, OptimizerState, Outcome]:
    """One step; everything stays as it was if the norm is not finite or above ``skip_above``.

    Args:
        params: Float32 parameters.
        gradients: Of the mean loss, unclipped.
        dtype: Of the products in ``orthogonalize``.
    """
    norm = global_norm(gradients)
    updated = jnp.isfinite(norm) & (norm <= scalars.skip_above)
    scale = jnp.minimum(1.0, config.clip_norm / norm) if config.clip_norm else jnp.ones_like(norm)

    slopes = named_leaves(gradients)
    new_leaves: Leaves = {}
    new_state: OptimizerState = {tree: {} for tree in state}
    for name, p in named_leaves(params).items():
        kept = {tree: leaves[name] for tree, leaves in state.items() if name in leaves}
        after, kept_after = _update_leaf(name, p, slopes[name] * scale, kept, config, scalars, dtype)
        new_leaves[name] = jnp.where(updated, after, p)
        for tree, value in kept_after.items():
            new_state[tree][name] = jnp.where(updated, value, kept[tree])
    new_params = jax.tree.unflatten(jax.tree.structure(params), new_leaves.values())
    return new_params, new_state, Outcome(norm, updated)


def _update_leaf(
    name: str, p: Array, g: Array, kept: Leaves, config: OptimizerConfig, scalars: StepScalars, dtype: str
) -> tuple[Array, Leaves]:
    """One leaf by its rule, its gradient clipped already; and what the rule keeps of it."""
    lr = scalars.lr
    if "momentum" in kept:
        lr = lr * config.muon_lr_factor
        direction, kept = _muon(g, **kept, parts=3 if field_of(name) == "qkv_weight" else 1, dtype=dtype)
    else:
        direction, kept = _adamw(g, **kept, config=config, scalars=scalars)
    if field_of(name) in MATRICES:
        direction = direction + config.weight_decay * p
    return p - lr * direction, kept


def _adamw(
    g: Array, first: Array, second: Array, config: OptimizerConfig, scalars: StepScalars
) -> tuple[Array, Leaves]:
    """AdamW's direction, and its moments."""
    first = config.beta1 * first + (1.0 - config.beta1) * g
    second = config.beta2 * second + (1.0 - config.beta2) * jnp.square(g)
    direction = (first / scalars.correction1) / (jnp.sqrt(second / scalars.correction2) + config.epsilon)
    return direction, {"first": first, "second": second}


def _muon(
    g: Float[Array, "*N R C"], momentum: Float[Array, "*N R C"], parts: int, dtype: str
) -> tuple[Array, Leaves]:
    """Muon's direction, and its momentum (Nesterov's).

    Args:
        parts: Matrices that lie side by side: each is orthogonalized for itself.
    """
    momentum = MUON_MOMENTUM * momentum + g
    ahead = g + MUON_MOMENTUM * momentum
    matrices = jnp.swapaxes(ahead.reshape(*g.shape[:-1], parts, -1), -3, -2)  # [*N, parts, R, C / parts]
    rows, columns = matrices.shape[-2:]
    direction = max(1.0, columns / rows) ** 0.5 * orthogonalize(matrices, dtype)
    return jnp.swapaxes(direction, -3, -2).reshape(g.shape), {"momentum": momentum}


def orthogonalize(x: Float[Array, "*N R C"], dtype: str) -> Float32[Array, "*N R C"]:
    """About ``U V^T`` of each matrix ``U S V^T``.

    Newton-Schulz: ``X <- a X + (b X X^T + c (X X^T)^2) X`` on ``X / |X|`` takes each singular value by the
    odd polynomial ``a s + b s^3 + c s^5``, whose slope at 0 is 3.4: after five steps those that were above
    a 500th lie between 0.68 and 1.21.

    Args:
        dtype: Of the products.
    """
    a, b, c = NEWTON_SCHULZ
    across = x.shape[-2] > x.shape[-1]  # the products are of the shorter side
    x = _rounded(x / (jnp.sqrt(jnp.square(x).sum((-2, -1), keepdims=True)) + NORM_FLOOR), dtype)
    x = x.mT if across else x
    for _ in range(NEWTON_SCHULZ_STEPS):
        # rounded for both of its terms, whose errors are of opposite sign
        gram = _rounded(_times(x, x.mT, dtype), dtype)
        x = _rounded(a * x + _times(b * gram + c * _times(gram, gram, dtype), x, dtype), dtype)
    return x.mT if across else x


def _rounded(x: Array, dtype: str) -> Array:
    """As ``dtype`` holds it, in the type that it has: XLA may leave a cast there and back out."""
    kind = jnp.finfo(dtype)
    return lax.reduce_precision(x, kind.nexp, kind.nmant)


def _times(x: Array, y: Array, dtype: str) -> Array:
    """A product of operands in ``dtype``, its sums in float32: what is added to it is not rounded before."""
    return product("...ij,...jk->...ik", x.astype(dtype), y.astype(dtype), wide=True)
