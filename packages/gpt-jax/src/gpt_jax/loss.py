"""Mean negative log-likelihood over chunks of tokens, and its gradient.

    nll_m = log sum_v exp(z_mv) - z_m,target(m),    z = h W^T
    d_z   = weight (softmax(z) - onehot(target)),   d_h = d_z W,   d_W = d_z^T h

The logits of a whole micro-batch, [M, Vp], would be the largest array of a step. The loss is the last
thing that is computed, so a chunk's gradient can be taken as soon as its value is: ``head_loss`` is a
``jax.custom_vjp`` whose forward pass scans over chunks, leaves ``d_h`` and ``d_W`` behind, and drops
each chunk's logits before the next begins. Backward only scales them. Nothing is computed twice.

Shapes: M tokens, N of them that are scored, c chunks, m tokens of a chunk, D width, Vp padded
vocabulary, B rows, T positions.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from gpt_data.batch import IGNORE
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from gpt_jax.model import Inputs, Parameters, Plan, hidden_states
from gpt_jax.precision import product, statistics_dtype


def weighted_loss(
    params: Parameters,
    inputs: Inputs,
    plan: Plan,
    weight: Float[Array, ""],
    keys: UInt32[Array, "L 4 3"] | None = None,
) -> Float[Array, ""]:
    """A micro-batch's share of the loss.

    Args:
        params: Float32 parameters.
        weight: One over the number of targets in the whole step, so that shares add up to the mean.
        keys: Dropout keys; ``None`` means no dropout.
    """
    hidden = hidden_states(params, inputs, plan, keys)
    return head_loss(hidden, params.wte, inputs.targets.reshape(-1), weight, plan)


class HeadGradients(NamedTuple):
    """What the forward pass of ``head_loss`` leaves for backward: the gradients themselves."""

    d_hidden: Float[Array, "M D"]
    d_wte: Float[Array, "Vp D"]


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def head_loss(
    hidden: Float[Array, "M D"],
    wte: Float[Array, "Vp D"],
    targets: Int[Array, " M"],
    weight: Float[Array, ""],
    plan: Plan,
) -> Float[Array, ""]:
    """Weighted sum of negative log-likelihoods; differentiable by ``hidden`` and ``wte``.

    Args:
        wte: The head's float32 weight.
    """
    return token_nll(hidden, wte, targets, plan).sum() * weight


def head_loss_fwd(
    hidden: Float[Array, "M D"],
    wte: Float[Array, "Vp D"],
    targets: Int[Array, " M"],
    weight: Float[Array, ""],
    plan: Plan,
) -> tuple[Float[Array, ""], HeadGradients]:
    """The loss, ``d_hidden`` in the type of ``hidden``, and ``d_wte`` summed over chunks in float32."""
    head = wte.astype(plan.dtype)

    def add_chunk(sums: tuple[Array, Array], chunk: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        loss, d_wte = sums
        h, t = chunk
        z = chunk_logits(h, head, plan, wide=False)
        nll, log_sum = negative_log_likelihood(z, t)
        d_z = _d_logits(z, log_sum, t, weight).astype(h.dtype)
        d_wte = d_wte + product("mv,md->vd", d_z, h, wide=True)
        return (loss + nll.sum() * weight, d_wte), product("mv,vd->md", d_z, head)

    chunks = split_chunks(hidden, targets, plan)
    (loss, d_wte), d_hidden = lax.scan(add_chunk, (jnp.zeros_like(weight), jnp.zeros_like(wte)), chunks)
    return loss, HeadGradients(d_hidden.reshape(-1, hidden.shape[1])[: len(hidden)], d_wte)


def head_loss_bwd(
    plan: Plan, residuals: HeadGradients, d_loss: Float[Array, ""]
) -> tuple[Float[Array, "M D"], Float[Array, "Vp D"], None, None]:
    """The gradients that the forward pass left, times the loss's own."""
    del plan
    d_hidden, d_wte = residuals
    return d_hidden * d_loss.astype(d_hidden.dtype), d_wte * d_loss, None, None


head_loss.defvjp(head_loss_fwd, head_loss_bwd)


def token_nll(
    hidden: Float[Array, "M D"], wte: Float[Array, "Vp D"], targets: Int[Array, " M"], plan: Plan
) -> Float[Array, " M"]:
    """Negative log-likelihood of each target, 0 where there is none, chunk by chunk.

    Args:
        wte: The head's float32 weight.
    """
    head = wte.astype(plan.dtype)

    def of_chunk(chunk: tuple[Array, Array]) -> Array:
        return negative_log_likelihood(chunk_logits(chunk[0], head, plan), chunk[1])[0]

    return lax.map(of_chunk, split_chunks(hidden, targets, plan)).reshape(-1)[: len(hidden)]


def chunk_logits(
    hidden: Float[Array, "m D"], head: Float[Array, "Vp D"], plan: Plan, *, wide: bool = True
) -> Float[Array, "m Vp"]:
    """A chunk's logits in float32; padding columns are the lowest number, which has no share in any sum.

    Args:
        wide: Keep the product's float32 sums; else they are rounded to the type of ``hidden`` first, which
            halves the bytes of the largest array of a step.
    """
    z = product("md,vd->mv", hidden, head, wide=wide).astype(statistics_dtype(hidden.dtype))
    if plan.vocab_size == head.shape[0]:
        return z
    return jnp.where(_column_ids(head.shape[0]) < plan.vocab_size, z, jnp.finfo(z.dtype).min)


def negative_log_likelihood(
    z: Float[Array, "m Vp"], targets: Int[Array, " m"]
) -> tuple[Float[Array, " m"], Float[Array, " m"]]:
    """Of each target, 0 where it is ``IGNORE``; and the log-sum-exp of each row.

    Maximum, sum of exponentials and the target's logit, picked by comparison and not by a gather, come of
    one pass over the logits.
    """
    peak, total = lax.reduce(
        (z, jnp.ones_like(z)), (jnp.finfo(z.dtype).min, jnp.zeros((), z.dtype)), _merge, (1,)
    )
    log_sum = peak + jnp.log(total)
    target_logit = jnp.where(_column_ids(z.shape[1]) == targets[:, None], z, 0.0).sum(-1)
    return jnp.where(targets == IGNORE, 0.0, log_sum - target_logit), log_sum


def _merge(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    """Maximum, and sum of exponentials relative to it, of two parts of a row; one exponential for both."""
    share = jnp.exp(-jnp.abs(a[0] - b[0]))
    return jnp.maximum(a[0], b[0]), jnp.where(a[0] > b[0], a[1] + b[1] * share, a[1] * share + b[1])


def _d_logits(
    z: Float[Array, "m Vp"], log_sum: Float[Array, " m"], targets: Int[Array, " m"], weight: Float[Array, ""]
) -> Float[Array, "m Vp"]:
    """``weight (softmax(z) - onehot(target))``, and 0 in rows without a target."""
    one_hot = (_column_ids(z.shape[1]) == targets[:, None]).astype(z.dtype)
    factor = jnp.where(targets == IGNORE, 0.0, weight).astype(z.dtype)
    return (jnp.exp(z - log_sum[:, None]) - one_hot) * factor[:, None]


def _column_ids(width: int) -> Int[Array, "1 Vp"]:
    return jnp.arange(width, dtype=jnp.int32)[None]


def target_log_probs(
    params: Parameters, inputs: Inputs, plan: Plan, index: Int[Array, " N"] | None = None
) -> Float[Array, " N"]:
    """Log-probability of each target, 0 where ignored; no dropout, no gradient.

    Args:
        params: Float32 parameters.
        index: Positions to score, counted through all rows; ``None`` means all of them.
    """
    hidden = hidden_states(params, inputs, plan)
    targets = inputs.targets.reshape(-1)
    if index is not None:
        hidden, targets = hidden[index], targets[index]
    return -token_nll(hidden, params.wte, targets, plan)


def split_chunks(
    hidden: Float[Array, "M D"], targets: Int[Array, " M"], plan: Plan
) -> tuple[Float[Array, "c m D"], Int[Array, "c m"]]:
    """Equal chunks whose logits number at most ``plan.chunk``; the last is filled up without targets."""
    tokens, width = hidden.shape
    count = -(-tokens // max(1, plan.chunk // plan.vocab_size))
    rows = -(-tokens // count)
    missing = count * rows - tokens
    hidden = jnp.pad(hidden, ((0, missing), (0, 0)))
    targets = jnp.pad(targets, (0, missing), constant_values=IGNORE)
    return hidden.reshape(count, rows, width), targets.reshape(count, rows)
