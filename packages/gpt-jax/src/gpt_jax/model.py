"""GPT-2 as pure functions of a tree of arrays.

    x_0 = wte[token] + wpe[position]
    y   = x_l + Attention(LayerNorm(x_l))
    x_{l+1} = y + MLP(LayerNorm(y))
    logits = LayerNorm(x_L) wte^T

Nothing here holds state: a function takes the parameters and returns values, and ``jax.grad`` turns it
into its derivative. Weights are ``(in, out)``, as OpenAI stored them.

``jax.checkpoint`` marks what is cheaper to compute again than to keep. With it a block keeps ten
widths for each token: x (1), queries, keys and values (3), the attention's output (1), y (1), and the
MLP's hidden layer before GELU (4).

Shapes: B rows, T positions, M tokens of all rows (B T), C longest context, Vp padded vocabulary, D width,
H heads, K head width, L blocks; r rows of a matrix that this device has, which ``mesh.whole`` makes whole.

References:
    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from flax import struct
from gpt_trainer.philox import Site
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from gpt_jax.attention import mix
from gpt_jax.dropout import dropout
from gpt_jax.gathering import gather_rows
from gpt_jax.mesh import whole
from gpt_jax.precision import product, statistics_dtype

EPSILON = 1e-5
PARTS = 128
"""Partial sums of ``sum_rows``: of 4,096 rows enough for all multiprocessors of a GPU."""


@struct.dataclass
class Block:
    """Parameters of one block; with a leading axis L, those of all blocks. r is D, or a part of it."""

    ln1_gain: Float[Array, "*L D"]
    ln1_bias: Float[Array, "*L D"]
    qkv_weight: Float[Array, "*L r 3*D"]  # columns: queries, keys, values
    qkv_bias: Float[Array, "*L 3*D"]
    out_weight: Float[Array, "*L r D"]
    out_bias: Float[Array, "*L D"]
    ln2_gain: Float[Array, "*L D"]
    ln2_bias: Float[Array, "*L D"]
    up_weight: Float[Array, "*L r 4*D"]
    up_bias: Float[Array, "*L 4*D"]
    down_weight: Float[Array, "*L 4*r D"]
    down_bias: Float[Array, "*L D"]


@struct.dataclass
class Parameters:
    """The whole model; the head is ``wte`` transposed.

    ``blocks`` is one ``Block`` whose arrays are stacked along a leading axis (the model is then a loop,
    compiled once for all blocks), or a tuple of them (each block is compiled for itself).
    """

    wte: Float[Array, "Vp D"]
    wpe: Float[Array, "C D"]
    blocks: Block | tuple[Block, ...]
    ln_f_gain: Float[Array, " D"]
    ln_f_bias: Float[Array, " D"]


@dataclass(frozen=True)
class Plan:
    """What the forward pass needs to know beside its arrays; fixed while a model lives.

    Attributes:
        n_head: Attention heads per block, H.
        vocab_size: Token ids before padding; columns from there on are masked in the loss.
        dtype: Type of activations and products; statistics stay float32.
        attention: ``"written"`` out, or ``"cudnn"``, the fused kernel behind ``jax.nn``.
        dropout: Rate at all four sites, when there are keys.
        chunk: Largest number of logits that exist at a time in the loss.
    """

    n_head: int
    vocab_size: int
    dtype: str = "float32"
    attention: Literal["written", "cudnn"] = "written"
    dropout: float = 0.0
    chunk: int = 2**24


@struct.dataclass
class Inputs:
    """One micro-batch on the device, or several with a leading axis N; see ``gpt_data.batch.Batch``."""

    tokens: Int[Array, "*N B T"]
    targets: Int[Array, "*N B T"]
    segment_starts: Int[Array, "*N B T"] | None = None
    documents: Int[Array, "*N B S"] | None = None
    """The same as ``segment_starts`` in cuDNN's words: see ``first_positions``."""
    first_rows: UInt32[Array, "*N n"] | None = None
    """Number of each device's first row in the whole step's batch, for the dropout masks; None without."""


def hidden_states(
    params: Parameters, inputs: Inputs, plan: Plan, keys: UInt32[Array, "L 4 3"] | None = None
) -> Float[Array, "M D"]:
    """What the head sees: the residual stream after the last block and its LayerNorm.

    Args:
        params: Float32 parameters; matrices are cast to ``plan.dtype`` where they are used.
        keys: Dropout keys by layer and ``Site``; ``None`` means no dropout.
    """
    x = embed(params, inputs, plan)
    x = dropout(x, None if keys is None else keys[0, Site.EMBEDDING], plan.dropout, len(inputs.tokens))

    if isinstance(params.blocks, tuple):
        for layer, block in enumerate(params.blocks):
            x = apply_block(block, x, inputs, plan, None if keys is None else keys[layer], layer)
    else:

        def step(x: Array, layer: tuple[Block, Array | None]) -> tuple[Array, None]:
            return apply_block(layer[0], x, inputs, plan, layer[1]), None

        x, _ = lax.scan(step, x, (params.blocks, keys))
    return jax.checkpoint(layer_norm)(x, params.ln_f_gain, params.ln_f_bias)


def logits(params: Parameters, inputs: Inputs, plan: Plan) -> Float[Array, "B T Vp"]:
    """All logits in float32, without dropout; columns past ``plan.vocab_size`` are padding."""
    hidden = hidden_states(params, inputs, plan)
    z = product("md,vd->mv", hidden, params.wte.astype(plan.dtype), wide=True)
    return z.reshape(*inputs.tokens.shape, -1)


def embed(params: Parameters, inputs: Inputs, plan: Plan) -> Float[Array, "M D"]:
    """Sum of token and position embeddings.

    The rows are gathered from the float32 parameters: the derivative of a gather is a sum over all
    occurrences of a token, and frequent tokens would lose theirs in bfloat16.
    """
    rows, context = inputs.tokens.shape
    token_rows = gather_rows(params.wte, inputs.tokens)
    if inputs.segment_starts is None:
        position_rows = jnp.broadcast_to(params.wpe[None, :context], token_rows.shape)
    else:
        position_rows = gather_rows(params.wpe, positions(inputs))
    return (token_rows + position_rows).astype(plan.dtype).reshape(rows * context, -1)


def positions(inputs: Inputs) -> Int[Array, "B T"]:
    """Position of each token within its document."""
    assert inputs.segment_starts is not None
    index = jnp.arange(inputs.tokens.shape[1], dtype=jnp.int32)[None]
    return index - inputs.segment_starts


def apply_block(
    block: Block,
    x: Float[Array, "M D"],
    inputs: Inputs,
    plan: Plan,
    keys: UInt32[Array, "4 3"] | None,
    layer: int = 0,
) -> Float[Array, "M D"]:
    """One block: attention, then the two-layer network, each normalised before and added after.

    Queries, keys and values come from three products, since one matrix of all three would have to be taken
    apart, and its gradient put together again, in memory.
    """
    key, out_key, down_key = (None, None, None) if keys is None else tuple(keys[1:])
    parts = norm_linear(x, block.ln1_gain, block.ln1_bias, block.qkv_weight, block.qkv_bias, 3)
    q, k, v = (part.reshape(*inputs.tokens.shape, plan.n_head, -1) for part in parts)
    fused, rows = plan.attention == "cudnn", len(inputs.tokens)
    h = mix(q, k, v, inputs.segment_starts, inputs.documents, key, plan.dropout, fused=fused, layer=layer)
    h = linear(h.reshape(x.shape), block.out_weight, block.out_bias)
    x = x + dropout(h, out_key, plan.dropout, rows)
    (h,) = norm_linear(x, block.ln2_gain, block.ln2_bias, block.up_weight, block.up_bias, 1)
    h = gelu_linear(h, block.down_weight, block.down_bias)
    return x + dropout(h, down_key, plan.dropout, rows)


@partial(jax.checkpoint, static_argnums=5)
def norm_linear(
    x: Float[Array, "M D"],
    gain: Float[Array, " D"],
    norm_bias: Float[Array, " D"],
    weight: Float[Array, "r W"],
    bias: Float[Array, " W"],
    parts: int,
) -> list[Float[Array, "M o"]]:
    """A linear map of the LayerNorm of ``x``, its columns in ``parts`` equal parts; o is W / parts.

    Backward normalises again and keeps ``x`` alone. Gain and bias are part of the map:
    ``(g n + b) W + c = n (g W) + (b W + c)``, so that their gradients are sums over a matrix of parameters,
    and not over all tokens.
    """
    n = normalise(x).astype(x.dtype)
    weight = whole(weight, x.shape[1], str(x.dtype))
    weight, bias = gain[:, None] * weight, product("i,io->o", norm_bias, weight) + bias
    maps = zip(jnp.split(weight, parts, -1), jnp.split(bias, parts), strict=True)
    return [linear(n, *each) for each in maps]


@jax.checkpoint
def gelu_linear(
    x: Float[Array, "M i"], weight: Float[Array, "r o"], bias: Float[Array, " o"]
) -> Float[Array, "M o"]:
    """A linear map of ``gelu(x)``; backward takes the GELU again and keeps ``x`` alone."""
    return linear(gelu(x), weight, bias)


def linear(
    x: Float[Array, "*M i"], weight: Float[Array, "r o"], bias: Float[Array, " o"]
) -> Float[Array, "*M o"]:
    """``x W + b`` in the precision of ``x``; the hardware accumulates in float32."""
    flat = x.reshape(-1, x.shape[-1])
    multiply = matrix_product if weight.shape[0] == x.shape[-1] else jax.checkpoint(matrix_product)
    return add_bias(multiply(flat, weight), bias).reshape(*x.shape[:-1], -1)


def matrix_product(x: Float[Array, "M i"], weight: Float[Array, "r o"]) -> Float[Array, "M o"]:
    """``x W``, of which this device may have some rows, in the precision of ``x``."""
    return product("mi,io->mo", x, whole(weight, x.shape[1], str(x.dtype)).astype(x.dtype))


@jax.custom_vjp
def add_bias(y: Float[Array, "M o"], bias: Float[Array, " o"]) -> Float[Array, "M o"]:
    """``y + b`` in the precision of ``y``, which a product does by the way.

    Its derivative, a sum over all tokens, is taken in that of ``b``.
    """
    return y + bias.astype(y.dtype)[None]


def add_bias_fwd(
    y: Float[Array, "M o"], bias: Float[Array, " o"]
) -> tuple[Float[Array, "M o"], Float[Array, " 0"]]:
    """The sum; kept is an empty array that knows the type of the bias."""
    return add_bias(y, bias), bias[:0]


def add_bias_bwd(
    empty: Float[Array, " 0"], d_y: Float[Array, "M o"]
) -> tuple[Float[Array, "M o"], Float[Array, " o"]]:
    """The gradient as it is, and its sum over all tokens."""
    return d_y, sum_rows(d_y.astype(empty.dtype))


add_bias.defvjp(add_bias_fwd, add_bias_bwd)


def sum_rows(x: Float[Array, "M o"]) -> Float[Array, " o"]:
    """The sum of all rows, in two steps.

    In one, XLA has a block of threads go down 128 columns of up to 4,096 rows: for 768 columns that is six,
    and 126 of an H200's 132 multiprocessors wait. It would join the two steps but for the barrier.
    """
    parts = x.reshape(math.gcd(len(x), PARTS), -1, x.shape[1]).sum(1)
    return lax.optimization_barrier(parts).sum(0)


def layer_norm(
    x: Float[Array, "*M D"], gain: Float[Array, " D"], bias: Float[Array, " D"]
) -> Float[Array, "*M D"]:
    """``gain * (x - mean) / sqrt(var + 1e-5) + bias`` over the last axis, in float32, rounded once."""
    gain, bias = (jnp.broadcast_to(row, x.shape) for row in (gain, bias))
    return (normalise(x) * gain + bias).astype(x.dtype)


def normalise(x: Float[Array, "*M D"]) -> Float[Array, "*M D"]:
    """``(x - mean) / sqrt(var + 1e-5)`` over the last axis, in float32."""
    wide = x.astype(statistics_dtype(x.dtype))
    centred = wide - wide.mean(-1, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + EPSILON)


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU by its tanh approximation: ``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``.

    Taken in float32 and rounded once: XLA fuses the casts, so that this costs no memory traffic.
    """
    return jax.nn.gelu(x.astype(statistics_dtype(x.dtype)), approximate=True).astype(x.dtype)
