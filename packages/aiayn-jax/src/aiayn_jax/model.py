"""The Transformer of "Attention Is All You Need" as pure functions of a tree of arrays.

    x_0 = drop(sqrt(D) E[token] + P)
    encoder layer:  y = LayerNorm(x + drop(Attention(x, x)));  x' = LayerNorm(y + drop(Network(y)))
    decoder layer:  the same, and between the two  z = LayerNorm(y + drop(Attention(y, memory)))
    Network(x) = relu(x U + a) W + b;   logits = x_L E^T
    P[t, i] = sin(t / 10000^(i/D)) for even i,  cos(t / 10000^((i-1)/D)) for odd i

One matrix E embeds both languages and is the head as well. LayerNorm comes after each residual sum,
with torch's epsilon of 1e-5, as the paper states none; no further one follows the last layer. The
linear maps of the attention have biases, as in ``torch.nn.Transformer``; the paper writes none.
Dropout acts at the paper's places: on the sum of embeddings and positions, and on each sub-layer's
output. It does not act on the attention weights.

Each residual sum keeps its two operands, of which the first is kept anyhow; LayerNorm and the
attention weights are computed again in backward.

Shapes: B rows, S source positions, T target positions (or those of either), V vocabulary (padded),
D width, F feed-forward width, H heads, K head width, L layers of a stack, A = 2 L of both.

References:
    Vaswani et al. 2017, "Attention Is All You Need".
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np
from gpt_jax.attention import split_heads
from gpt_jax.gathering import gather_rows
from gpt_jax.model import linear
from gpt_jax.precision import product
from jax import lax
from jaxtyping import Array, Float, Int, UInt8, UInt32

from aiayn_jax.attention import attend
from aiayn_jax.config import TransformerConfig, parameter_shapes
from aiayn_jax.layers import Masks, add_norm, draw_masks, masked, positions, relu
from aiayn_jax.parameters import (
    Attention,
    DecoderLayer,
    EncoderLayer,
    Inputs,
    Network,
    Parameters,
    Site,
)
from aiayn_jax.plan import Plan
from aiayn_jax.tree import from_named


def hidden_states(
    params: Parameters, inputs: Inputs, plan: Plan, keys: UInt32[Array, "A 4 3"] | None = None
) -> Float[Array, "B T D"]:
    """What the head sees at every target position.

    Args:
        params: Float32 parameters; matrices are cast to ``plan.dtype`` where they are used.
        keys: Dropout keys by layer, the encoder's first, and ``Site``; ``None`` means no dropout.
    """
    encoder_keys, decoder_keys = (None, None) if keys is None else jnp.split(keys, 2)
    lengths = jnp.maximum(inputs.source_lengths, 1)  # a row that only fills up sees one key, not none
    memory = encode(params, inputs.source, lengths, plan, encoder_keys)
    return decode(params, memory, lengths, inputs.target_in, plan, decoder_keys)


def encode(
    params: Parameters,
    source: Int[Array, "B S"],
    lengths: Int[Array, " B"],
    plan: Plan,
    keys: UInt32[Array, "L 4 3"] | None = None,
) -> Float[Array, "B S D"]:
    """The encoder's output; past ``lengths`` it is finite and means nothing.

    Args:
        lengths: Ids that count in each row, at least 1.
        keys: Dropout keys of the encoder; ``None`` means no dropout.
    """

    def step(x: Array, scanned: tuple[EncoderLayer, Masks]) -> tuple[Array, None]:
        layer, masks = scanned
        mixed = self_attention(layer.attention, x, lengths, plan)
        x = add_norm(layer.attention, x, mixed, masks.get(Site.ATTENTION), plan)
        return add_norm(layer.network, x, feed_forward(layer.network, x), masks.get(Site.NETWORK), plan), None

    shape, sites = (*source.shape, params.embedding.shape[1]), (Site.ATTENTION, Site.NETWORK)
    first, masks = draw_masks(keys, sites, shape, plan)
    return lax.scan(step, embed(params, source, plan, first), (params.encoder, masks), unroll=plan.unroll)[0]


def decode(
    params: Parameters,
    memory: Float[Array, "B S D"],
    lengths: Int[Array, " B"],
    target: Int[Array, "B T"],
    plan: Plan,
    keys: UInt32[Array, "L 4 3"] | None = None,
) -> Float[Array, "B T D"]:
    """The decoder's output, at each position from the target up to it and all of the source.

    Args:
        lengths: Positions of the memory that count in each row, at least 1.
        keys: Dropout keys of the decoder; ``None`` means no dropout.
    """

    def step(x: Array, scanned: tuple[DecoderLayer, Masks]) -> tuple[Array, None]:
        layer, masks = scanned
        mixed = self_attention(layer.attention, x, None, plan)
        x = add_norm(layer.attention, x, mixed, masks.get(Site.ATTENTION), plan)
        mixed = cross_attention(layer.cross, x, memory, lengths, plan)
        x = add_norm(layer.cross, x, mixed, masks.get(Site.CROSS), plan)
        return add_norm(layer.network, x, feed_forward(layer.network, x), masks.get(Site.NETWORK), plan), None

    shape, sites = (*target.shape, params.embedding.shape[1]), (Site.ATTENTION, Site.CROSS, Site.NETWORK)
    first, masks = draw_masks(keys, sites, shape, plan)
    return lax.scan(step, embed(params, target, plan, first), (params.decoder, masks), unroll=plan.unroll)[0]


def embed(
    params: Parameters, tokens: Int[Array, "B T"], plan: Plan, mask: UInt8[Array, "B T n"] | None = None
) -> Float[Array, "B T D"]:
    """``drop(sqrt(D) E[token] + P)``; rows are gathered from float32, as their gradients are sums.

    XLA's own derivative of a gather adds in an order that differs from run to run, eight times as fast.

    Args:
        mask: Which elements are kept; ``None`` means all.
    """
    length, width = tokens.shape[1], params.embedding.shape[1]
    rows = gather_rows(params.embedding, tokens) if plan.deterministic else params.embedding[tokens]
    x = rows * math.sqrt(width) + jnp.asarray(positions(length, width), rows.dtype)[None]
    return masked(x, mask, plan).astype(plan.dtype)


def self_attention(
    part: Attention, x: Float[Array, "B T D"], lengths: Int[Array, " B"] | None, plan: Plan
) -> Float[Array, "B T D"]:
    """Every position looks at its own sequence: all of it up to ``lengths``, or causally.

    Args:
        lengths: Positions that count in each row; ``None`` means causal attention.
    """
    q, k, v = split_heads(linear(x, part.qkv_weight, part.qkv_bias), plan.n_head)
    return linear(attend(q, k, v, lengths, plan).reshape(x.shape), part.out_weight, part.out_bias)


def cross_attention(
    part: Attention,
    x: Float[Array, "B T D"],
    memory: Float[Array, "B S D"],
    lengths: Int[Array, " B"],
    plan: Plan,
) -> Float[Array, "B T D"]:
    """Every target position looks at all of the encoder's output up to ``lengths``."""
    k, v = memory_keys_values(part, memory, plan)
    mixed = attend(cross_queries(part, x, plan), k, v, lengths, plan)
    return linear(mixed.reshape(x.shape), part.out_weight, part.out_bias)


def cross_queries(part: Attention, x: Float[Array, "B T D"], plan: Plan) -> Float[Array, "B T H K"]:
    """The target's queries: the first D columns of the fused map."""
    width = x.shape[2]
    q = linear(x, part.qkv_weight[:, :width], part.qkv_bias[:width])
    return q.reshape(*x.shape[:2], plan.n_head, -1)


def memory_keys_values(
    part: Attention, memory: Float[Array, "B S D"], plan: Plan
) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
    """The memory's keys and values: the other columns."""
    rows, length, width = memory.shape
    kv = linear(memory, part.qkv_weight[:, width:], part.qkv_bias[width:])
    kv = kv.reshape(rows, length, 2, plan.n_head, -1)
    return kv[:, :, 0], kv[:, :, 1]


def feed_forward(part: Network, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """``relu(x U + a) W + b``."""
    return linear(relu(linear(x, part.up_weight, part.up_bias)), part.down_weight, part.down_bias)


def logits(params: Parameters, inputs: Inputs, plan: Plan) -> Float[Array, "B T V"]:
    """All logits in float32, without dropout; columns past ``plan.vocab_size`` are padding."""
    hidden = hidden_states(params, inputs, plan)
    return product("btd,vd->btv", hidden, params.embedding.astype(plan.dtype), wide=True)


def init_parameters(config: TransformerConfig, seed: int) -> Parameters:
    """Initial weights, all drawn from one Philox stream in the order of ``parameter_shapes``.

    The embedding is normal with deviation ``1 / sqrt(D)``: its rows times ``sqrt(D)`` have the size of the
    sinusoids, and the first logits have deviation 1. Matrices are uniform within ``sqrt(6 / (in + out))``
    (Xavier), each of queries, keys and values taken as a matrix of its own; the paper states neither.
    Gains are one and biases zero.

    Args:
        seed: Key of the stream, from 0.

    References:
        Glorot and Bengio 2010, equation 16.
    """
    stream = np.random.Generator(np.random.Philox(key=seed))
    values = {}
    for name, shape in parameter_shapes(config).items():
        if name == "embedding":
            values[name] = stream.standard_normal(shape, np.float32) * np.float32(config.d_model**-0.5)
        elif len(shape) == 2:
            columns = config.d_model if name.endswith("qkv_weight") else shape[1]
            bound = math.sqrt(6.0 / (shape[0] + columns))
            values[name] = ((2.0 * stream.random(shape, np.float32) - 1.0) * bound).astype(np.float32)
        else:
            values[name] = np.full(shape, name.endswith("gain"), np.float32)
    return from_named(values, config)
