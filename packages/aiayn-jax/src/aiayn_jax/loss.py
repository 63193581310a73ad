"""Label-smoothed cross-entropy over chunks of tokens, and its gradient.

    q_mv   = (1 - e) onehot(target_m)_v + e / V          (the target has its share of the e, too)
    loss_m = -sum_v q_mv log p_mv = log sum_v exp(z_mv) - (1 - e) z_m,target(m) - e/V sum_v z_mv
    d_z    = weight (softmax(z) - q),   d_h = d_z E,   d_E = d_z^T h

As in ``gpt_jax.loss`` a chunk's gradients are taken as soon as its logits are there, so that no more
than one chunk of logits exists. Beside the smoothed loss stands the plain negative log-likelihood,
which is what perplexity is made of; it has no gradient of its own.

Shapes: M tokens, m tokens of a chunk, N chunks, D width, V vocabulary (padded), B rows, T positions,
A layers of both stacks.

References:
    Szegedy et al. 2016, "Rethinking the Inception Architecture", section 7; Vaswani et al. 2017, 5.4.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from gpt_data.batch import IGNORE
from gpt_jax.loss import HeadGradients, chunk_logits, negative_log_likelihood, split_chunks, token_nll
from gpt_jax.precision import product, statistics_dtype
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from aiayn_jax.model import hidden_states
from aiayn_jax.parameters import Inputs, Parameters
from aiayn_jax.plan import Plan


class Losses(NamedTuple):
    """Weighted sums over the targets."""

    smoothed: Float[Array, ""]
    nll: Float[Array, ""]


def weighted_losses(
    params: Parameters,
    inputs: Inputs,
    plan: Plan,
    weight: Float[Array, ""],
    keys: UInt32[Array, "A 4 3"] | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The smoothed loss, which is to be differentiated, and beside it the negative log-likelihood.

    Args:
        params: Float32 parameters.
        keys: Dropout keys; ``None`` means no dropout.
    """
    hidden = hidden_states(params, inputs, plan, keys)
    flat, targets = hidden.reshape(-1, hidden.shape[-1]), inputs.target_out.reshape(-1)
    losses = smoothed_loss(flat, params.embedding, targets, weight, plan)
    return losses.smoothed, losses.nll


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def smoothed_loss(
    hidden: Float[Array, "M D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, " M"],
    weight: Float[Array, ""],
    plan: Plan,
) -> Losses:
    """Both sums; the smoothed one is differentiable by ``hidden`` and ``embedding``.

    Args:
        embedding: The head's float32 weight.
    """
    return smoothed_loss_fwd(hidden, embedding, targets, weight, plan)[0]


def smoothed_loss_fwd(
    hidden: Float[Array, "M D"],
    embedding: Float[Array, "V D"],
    targets: Int[Array, " M"],
    weight: Float[Array, ""],
    plan: Plan,
) -> tuple[Losses, HeadGradients]:
    """The losses, ``d_hidden`` in the type of ``hidden``, and ``d_embedding`` summed in float32."""
    head = embedding.astype(plan.dtype)

    def add_chunk(
        sums: tuple[Losses, Array], chunk: tuple[Array, Array]
    ) -> tuple[tuple[Losses, Array], Array]:
        losses, d_head = sums
        h, t = chunk
        z = _logits(h, head, plan)
        nll, log_sum = negative_log_likelihood(z, t)
        smoothed = smooth(nll, z, log_sum, t, plan)
        d_z = _d_logits(z, log_sum, t, weight, plan).astype(h.dtype)
        d_head = d_head + product("mv,md->vd", d_z, h, wide=True)
        losses = Losses(losses.smoothed + smoothed.sum() * weight, losses.nll + nll.sum() * weight)
        return (losses, d_head), product("mv,vd->md", d_z, head)

    nothing = Losses(jnp.zeros_like(weight), jnp.zeros_like(weight))
    chunks = split_chunks(hidden, targets, plan)
    (losses, d_head), d_hidden = lax.scan(add_chunk, (nothing, jnp.zeros_like(embedding)), chunks)
    return losses, HeadGradients(d_hidden.reshape(-1, hidden.shape[1])[: len(hidden)], d_head)


def smoothed_loss_bwd(
    plan: Plan, residuals: HeadGradients, d_losses: Losses
) -> tuple[Float[Array, "M D"], Float[Array, "V D"], None, None]:
    """The gradients that the forward pass left, times that of the smoothed loss."""
    del plan
    d_hidden, d_embedding = residuals
    return d_hidden * d_losses.smoothed.astype(d_hidden.dtype), d_embedding * d_losses.smoothed, None, None


smoothed_loss.defvjp(smoothed_loss_fwd, smoothed_loss_bwd)


def _logits(hidden: Float[Array, "m D"], head: Float[Array, "V D"], plan: Plan) -> Float[Array, "m V"]:
    """A chunk's logits; narrow ones are rounded once, and every sum over them is wide all the same."""
    if plan.wide_logits:
        return chunk_logits(hidden, head, plan)
    z = product("md,vd->mv", hidden, head).astype(statistics_dtype(hidden.dtype))
    return jnp.where(_real(z, plan), z, -jnp.inf)


def smooth(
    nll: Float[Array, " m"],
    z: Float[Array, "m V"],
    log_sum: Float[Array, " m"],
    targets: Int[Array, " m"],
    plan: Plan,
) -> Float[Array, " m"]:
    """``(1 - e) nll + e (log-sum-exp - mean of the logits)``, 0 where there is no target.

    Args:
        z: Logits; padding columns are minus infinity.
    """
    if not plan.smoothing:
        return nll
    mean = jnp.where(_real(z, plan), z, 0.0).sum(-1) / plan.vocab_size
    uniform = jnp.where(targets == IGNORE, 0.0, log_sum - mean)
    return (1.0 - plan.smoothing) * nll + plan.smoothing * uniform


def _d_logits(
    z: Float[Array, "m V"],
    log_sum: Float[Array, " m"],
    targets: Int[Array, " m"],
    weight: Float[Array, ""],
    plan: Plan,
) -> Float[Array, "m V"]:
    """``weight (softmax(z) - q)``; 0 in rows without a target and in padding columns."""
    column = jnp.arange(z.shape[1], dtype=jnp.int32)[None]
    share = plan.smoothing / plan.vocab_size
    wanted = jnp.where(column == targets[:, None], 1.0 - plan.smoothing + share, share)
    wanted = jnp.where(_real(z, plan), wanted, 0.0).astype(z.dtype)
    factor = jnp.where(targets == IGNORE, 0.0, weight).astype(z.dtype)
    return (jnp.exp(z - log_sum[:, None]) - wanted) * factor[:, None]


def _real(z: Float[Array, "m V"], plan: Plan) -> Array:
    """True in the columns that are no padding."""
    return jnp.arange(z.shape[1], dtype=jnp.int32)[None] < plan.vocab_size


def total_nll(params: Parameters, inputs: Inputs, plan: Plan) -> Float[Array, ""]:
    """Sum of the targets' negative log-likelihoods, without dropout and smoothing."""
    hidden = hidden_states(params, inputs, plan)
    flat = hidden.reshape(-1, hidden.shape[-1])
    return token_nll(flat, params.embedding, inputs.target_out.reshape(-1), plan).sum()
