"""Multi-head attention whose keys may be of another sequence than its queries.

    out_t = sum_s softmax_s(q_t . k_s / sqrt(K)) v_s     over s < length, and s <= t if causal

Sentences are short, so that all weights of a layer, ``[B, H, T, S]``, are formed at once; they are
formed again in backward and not kept.

Shapes: B rows, T queries, S keys, H heads, K head width.

References:
    Vaswani et al. 2017, section 3.2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from gpt_jax.attention import attention_weights, visible, weighted_sum
from jaxtyping import Array, Bool, Float, Int

from aiayn_jax.plan import Plan


def attend(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    lengths: Int[Array, " B"] | None,
    plan: Plan,
) -> Float[Array, "B T H K"]:
    """What the queries see: the first ``lengths`` keys, or, causally, those up to their own position.

    cuDNN's kernel has a derivative only for an even number of queries and of keys; with others the
    written form is used.

    Args:
        lengths: How many keys of each row count, at least 1; ``None`` means causal attention.
    """
    if plan.attention == "cudnn" and q.shape[1] % 2 == 0 and k.shape[1] % 2 == 0:
        return jax.nn.dot_product_attention(
            q, k, v, is_causal=lengths is None, key_value_seq_lengths=lengths, implementation="cudnn"
        )
    return _attend_written(q, k, v, lengths)


@jax.checkpoint
def _attend_written(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H K"],
    lengths: Int[Array, " B"] | None,
) -> Float[Array, "B T H K"]:
    queries, keys = q.shape[1], k.shape[1]
    if lengths is None:
        mask = visible(jnp.arange(queries, dtype=jnp.int32), keys, None)
    else:
        mask = within(lengths, queries, keys)
    return weighted_sum(attention_weights(q, k, mask), v)


def within(lengths: Int[Array, " B"], queries: int, keys: int) -> Bool[Array, "B queries keys"]:
    """True where a key belongs to its row's sentence."""
    inside = jnp.arange(keys, dtype=jnp.int32)[None] < lengths[:, None]
    return jnp.broadcast_to(inside[:, None], (len(lengths), queries, keys))
