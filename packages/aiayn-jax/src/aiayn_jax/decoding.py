"""One target position at a time, the keys and values of earlier ones kept.

Several hypotheses of one sentence share its encoded source: they are the queries of one attention
over it, so that its keys and values exist once.

Shapes: B sentences, J hypotheses of each, R = B * J rows, S source positions, C room for target
positions, D width, H heads, K head width, V vocabulary, L layers.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import struct
from gpt_jax.attention import attention_weights, split_heads, weighted_sum
from gpt_jax.model import linear
from gpt_jax.precision import product
from jax import lax
from jaxtyping import Array, Float, Int

from aiayn_jax.attention import within
from aiayn_jax.layers import add_norm, positions
from aiayn_jax.model import cross_queries, encode, feed_forward, memory_keys_values
from aiayn_jax.parameters import DecoderLayer, Parameters
from aiayn_jax.plan import Plan


@struct.dataclass
class Cache:
    """Keys and values of one attention; with a leading axis L, those of all layers."""

    keys: Float[Array, "*L R C H K"]
    values: Float[Array, "*L R C H K"]


@struct.dataclass
class Source:
    """What the decoder looks at: by layer, the keys and values of the encoded sentences."""

    memory: Cache
    lengths: Int[Array, " B"]


def read_source(
    params: Parameters, source: Int[Array, "B S"], lengths: Int[Array, " B"], plan: Plan
) -> Source:
    """Encode the sentences, and map them to keys and values once for all steps.

    Args:
        lengths: Ids that count in each row; 0 counts as 1.
    """
    lengths = jnp.maximum(lengths, 1)
    memory = encode(params, source, lengths, plan)
    keys, values = lax.map(lambda part: memory_keys_values(part, memory, plan), params.decoder.cross)
    return Source(Cache(keys, values), lengths)


def narrow(params: Parameters, plan: Plan) -> Parameters:
    """The model with the layers' matrices in the plan's precision: every step reads all of them."""

    def cast(leaf: Array) -> Array:
        return leaf.astype(plan.dtype) if leaf.ndim == 3 else leaf  # [L, in, out]

    encoder, decoder = (jax.tree.map(cast, stack) for stack in (params.encoder, params.decoder))
    return Parameters(params.embedding, encoder, decoder)


def empty_cache(params: Parameters, rows: int, room: int, plan: Plan) -> Cache:
    """Room for the keys and values of the target."""
    layers, width = params.decoder.network.down_bias.shape
    empty = jnp.zeros((layers, rows, room, plan.n_head, width // plan.n_head), plan.dtype)
    return Cache(empty, empty)


def advance(
    params: Parameters,
    cache: Cache,
    source: Source,
    tokens: Int[Array, "B J"],
    position: Int[Array, ""],
    plan: Plan,
) -> tuple[Cache, Float[Array, "B J V"]]:
    """Take in one token of each hypothesis; return the log-probabilities of the next, in float32.

    Args:
        tokens: The hypotheses' latest tokens; end-of-text at position 0.
    """
    width, room = params.embedding.shape[1], cache.keys.shape[2]
    table = jnp.asarray(positions(room, width), params.embedding.dtype)
    x = (params.embedding[tokens] * math.sqrt(width) + table[position][None, None]).astype(plan.dtype)

    def step(x: Array, scanned: tuple[DecoderLayer, Cache, Cache]) -> tuple[Array, Cache]:
        layer, cache, memory = scanned
        mixed, cache = _self_attention(layer, x, cache, position, plan)
        x = add_norm(layer.attention, x, mixed, None, plan)
        mask = within(source.lengths, x.shape[1], memory.keys.shape[1])
        weights = attention_weights(cross_queries(layer.cross, x, plan), memory.keys, mask)
        mixed = weighted_sum(weights, memory.values).reshape(x.shape)
        mixed = linear(mixed, layer.cross.out_weight, layer.cross.out_bias)
        x = add_norm(layer.cross, x, mixed, None, plan)
        return add_norm(layer.network, x, feed_forward(layer.network, x), None, plan), cache

    x, cache = lax.scan(step, x, (params.decoder, cache, source.memory))
    z = product("bjd,vd->bjv", x, params.embedding.astype(plan.dtype), wide=True)[..., : plan.vocab_size]
    return cache, jax.nn.log_softmax(z, axis=-1)


def _self_attention(
    layer: DecoderLayer, x: Float[Array, "B J D"], cache: Cache, position: Int[Array, ""], plan: Plan
) -> tuple[Float[Array, "B J D"], Cache]:
    """Each hypothesis looks back over its own tokens."""
    rows, room = cache.keys.shape[:2]
    part = layer.attention
    qkv = linear(x.reshape(rows, 1, -1), part.qkv_weight, part.qkv_bias)
    q, k, v = split_heads(qkv, plan.n_head)
    keys = lax.dynamic_update_slice_in_dim(cache.keys, k, position, axis=1)
    values = lax.dynamic_update_slice_in_dim(cache.values, v, position, axis=1)
    mask = (jnp.arange(room, dtype=jnp.int32) <= position)[None, None]  # [1, 1, C]
    mixed = weighted_sum(attention_weights(q, keys, mask), values).reshape(x.shape)
    return linear(mixed, part.out_weight, part.out_bias), Cache(keys, values)
