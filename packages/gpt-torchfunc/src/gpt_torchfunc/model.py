"""GPT-2 as pure functions of a tree of tensors.

    x_0 = wte[token] + wpe[position]
    y   = x_l + Attention(LayerNorm(x_l))
    x_{l+1} = y + MLP(LayerNorm(y))
    logits = LayerNorm(x_L) wte^T

Nothing here holds state: a function takes the parameters and returns values, and ``torch.func``
turns it into its derivative. Weights are ``(in, out)``, as OpenAI stored them.

Shapes: B rows, T positions, M tokens of all rows (B T), C longest context, Vp padded vocabulary, D width,
H heads, K head width, E hidden width (4 D), L blocks, R bytes of a mask for D.

References:
    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from gpt_trainer.philox import Site
from jaxtyping import Float, Int, Int64, Shaped, UInt8
from torch import Tensor

from gpt_torchfunc.attention import Bits, draw_weights, mix, statistics_dtype, visible
from gpt_torchfunc.dropout import draw_rows, dropout

EPSILON = 1e-5


class Block(NamedTuple):
    """Parameters of one block; with a leading axis L, those of all blocks."""

    ln1_gain: Float[Tensor, "*L D"]
    ln1_bias: Float[Tensor, "*L D"]
    qkv_weight: Float[Tensor, "*L D 3*D"]  # columns: queries, keys, values
    qkv_bias: Float[Tensor, "*L 3*D"]
    out_weight: Float[Tensor, "*L D D"]
    out_bias: Float[Tensor, "*L D"]
    ln2_gain: Float[Tensor, "*L D"]
    ln2_bias: Float[Tensor, "*L D"]
    up_weight: Float[Tensor, "*L D 4*D"]
    up_bias: Float[Tensor, "*L 4*D"]
    down_weight: Float[Tensor, "*L 4*D D"]
    down_bias: Float[Tensor, "*L D"]


class Parameters(NamedTuple):
    """The whole model; the head is ``wte`` transposed.

    The blocks are stacked along a leading axis, so that the model is 16 tensors whatever its depth:
    few arguments for the compiled step to check, few kernels for the optimizer to launch.
    """

    wte: Float[Tensor, "Vp D"]
    wpe: Float[Tensor, "C D"]
    blocks: Block
    ln_f_gain: Float[Tensor, " D"]
    ln_f_bias: Float[Tensor, " D"]


@dataclass(frozen=True)
class Plan:
    """What the forward pass needs to know beside its arrays; fixed while a model lives.

    Attributes:
        n_head: Attention heads per block, H.
        vocab_size: Token ids before padding; columns from there on are masked in the loss.
        dtype: Type of activations and products; statistics stay float32.
        attention: ``"written"`` out; ``"sdpa"``, torch's fused kernel; or ``"cudnn"``, the same but for the
            derivative where rows are whole.
        dropout: Rate at all four sites, when there are keys.
        chunk: Largest number of logits that exist at a time in the loss.
    """

    n_head: int
    vocab_size: int
    dtype: torch.dtype = torch.float32
    attention: Literal["written", "sdpa", "cudnn"] = "written"
    dropout: float = 0.0
    chunk: int = 2**24


class Inputs(NamedTuple):
    """One micro-batch on the device; see ``gpt_data.batch.Batch``."""

    tokens: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    segment_starts: Int[Tensor, "B T"] | None = None
    boundaries: Int[Tensor, " S"] | None = None
    """Where documents begin and end, counted through all rows; then attention needs no mask."""


class Masks(NamedTuple):
    """The dropout masks of a block, as bits; ``None`` where nothing is dropped."""

    attention: Bits | None = None
    out: UInt8[Tensor, "M R"] | None = None
    down: UInt8[Tensor, "M R"] | None = None


def hidden_states(
    params: Parameters, inputs: Inputs, plan: Plan, keys: Int64[Tensor, "L 4 3"] | None = None
) -> Float[Tensor, "M D"]:
    """What the head sees: the residual stream after the last block and its LayerNorm.

    Args:
        params: Float32 parameters; matrices are cast to ``plan.dtype`` where they are used.
        keys: Dropout keys by layer and ``Site``; ``None`` means no dropout.
    """
    bits = None
    if keys is not None:
        plan, shape = written(plan), (*inputs.tokens.shape, params.wte.shape[1])
        bits = draw_rows(shape, keys[0, Site.EMBEDDING], plan.dropout)
    x, mask = embed(params, inputs, plan, bits), visibility(inputs, plan)
    for layer, block in enumerate(unstack(params.blocks)):
        x = apply_block(block, x, inputs, mask, plan, None if keys is None else keys[layer])
    return layer_norm(x, params.ln_f_gain, params.ln_f_bias)


def written(plan: Plan) -> Plan:
    """The plan of a pass with dropout: torch's fused kernel would draw its own random numbers."""
    return replace(plan, attention="written")


def logits(params: Parameters, inputs: Inputs, plan: Plan) -> Float[Tensor, "B T Vp"]:
    """All logits, without dropout; columns past ``plan.vocab_size`` are padding."""
    z = hidden_states(params, inputs, plan) @ params.wte.to(plan.dtype).T
    return z.unflatten(0, inputs.tokens.shape)


def unstack(blocks: Block) -> list[Block]:
    """The blocks one by one, as views."""
    return [Block(*leaves) for leaves in zip(*(leaf.unbind(0) for leaf in blocks), strict=True)]


def embed(
    params: Parameters, inputs: Inputs, plan: Plan, bits: UInt8[Tensor, "M R"] | None = None
) -> Float[Tensor, "M D"]:
    """The residual stream before the first block: the sum of token and position embeddings, dropped.

    The rows are gathered from the float32 parameters: the derivative of a gather is a sum over all
    occurrences of a token, and frequent tokens would lose theirs in bfloat16.
    """
    context = inputs.tokens.shape[1]
    if inputs.segment_starts is None:
        position_rows = params.wpe[:context]
    else:
        position_rows = F.embedding(positions(inputs), params.wpe)
    x = (F.embedding(inputs.tokens, params.wte) + position_rows).to(plan.dtype).flatten(0, 1)
    return dropout(x, bits, plan.dropout)


def positions(inputs: Inputs) -> Int[Tensor, "B T"]:
    """Position of each token within its document."""
    assert inputs.segment_starts is not None
    index = torch.arange(inputs.tokens.shape[1], device=inputs.tokens.device)
    return index - inputs.segment_starts


def apply_block(
    block: Block,
    x: Float[Tensor, "M D"],
    inputs: Inputs,
    mask: Shaped[Tensor, "#B T T"] | None,
    plan: Plan,
    keys: Int64[Tensor, "4 3"] | None,
) -> Float[Tensor, "M D"]:
    """One block: attention, then the two-layer network, each normalised before and added after."""
    shape = (*inputs.tokens.shape, plan.n_head)
    heads = project(x, *block[:4], shape=shape)
    masks = Masks() if keys is None else draw_masks(keys, (*shape, x.shape[1]), plan.dropout)
    fused = plan.attention != "written"
    mixed = mix(*heads, mask, inputs.boundaries, masks.attention, plan.dropout, fused=fused)
    return leave(block, x, mixed, plan, masks.out, masks.down)[-1]


def draw_masks(keys: Int64[Tensor, "4 3"], shape: tuple[int, int, int, int], rate: float) -> Masks:
    """The masks of a block.

    Args:
        shape: Rows, positions, heads, width.
    """
    rows, context, heads, width = shape
    out, down = (
        draw_rows((rows, context, width), keys[site], rate)
        for site in (Site.ATTENTION_RESIDUAL, Site.MLP_RESIDUAL)
    )
    return Masks(draw_weights((rows, heads, context), keys[Site.ATTENTION], rate), out, down)


def project(
    x: Float[Tensor, "M D"],
    gain: Float[Tensor, " D"],
    norm_bias: Float[Tensor, " D"],
    weight: Float[Tensor, "D 3*D"],
    bias: Float[Tensor, " 3*D"],
    *,
    shape: tuple[int, int, int],
) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"], Float[Tensor, "B H T K"]]:
    """Queries, keys and values of every head, from the LayerNorm of ``x``.

    They come of three products, since the gradients of one matrix of all three would have to be put
    together in memory.
    """
    parts = norm_linear(x, gain, norm_bias, weight, bias, 3)
    q, k, v = (part.view(*shape, -1).transpose(1, 2) for part in parts)
    return q, k, v


def leave(
    block: Block,
    x: Float[Tensor, "M D"],
    mixed: Float[Tensor, "M D"],
    plan: Plan,
    out_bits: UInt8[Tensor, "M R"] | None,
    down_bits: UInt8[Tensor, "M R"] | None,
) -> tuple[Float[Tensor, "M D"], Float[Tensor, "M E"], Float[Tensor, "M D"]]:
    """A block behind its attention: y, the network's hidden layer before GELU, and the residual stream."""
    y = x + dropout(linear(mixed, *block[4:6]), out_bits, plan.dropout)
    (hidden,) = norm_linear(y, *block[6:10], 1)
    return y, hidden, y + dropout(gelu_linear(hidden, *block[10:]), down_bits, plan.dropout)


def norm_linear(
    x: Float[Tensor, "M D"],
    gain: Float[Tensor, " D"],
    norm_bias: Float[Tensor, " D"],
    weight: Float[Tensor, "D W"],
    bias: Float[Tensor, " W"],
    parts: int,
) -> list[Float[Tensor, "M o"]]:
    """A linear map of the LayerNorm of ``x``, its columns in ``parts`` equal parts; o is W / parts.

    Gain and bias are part of the map: ``(g n + b) W + c = n (g W) + (b W + c)``, so that their gradients
    are sums over a matrix of parameters, and not over all tokens.
    """
    n = normalise(x).to(x.dtype)
    weight, bias = gain[:, None] * weight, norm_bias @ weight + bias
    maps = zip(weight.chunk(parts, -1), bias.chunk(parts, -1), strict=True)
    return [linear(n, *each) for each in maps]


def gelu_linear(
    x: Float[Tensor, "M i"], weight: Float[Tensor, "i o"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "M o"]:
    """A linear map of ``gelu(x)``."""
    return linear(gelu(x), weight, bias)


def linear(
    x: Float[Tensor, "*M i"], weight: Float[Tensor, "i o"], bias: Float[Tensor, " o"]
) -> Float[Tensor, "*M o"]:
    """``x W + b`` in the precision of ``x``; the hardware accumulates in float32."""
    return x @ weight.to(x.dtype) + bias.to(x.dtype)


def layer_norm(
    x: Float[Tensor, "*M D"], gain: Float[Tensor, " D"], bias: Float[Tensor, " D"]
) -> Float[Tensor, "*M D"]:
    """``gain * (x - mean) / sqrt(var + 1e-5) + bias`` over the last axis, in float32, rounded once."""
    return (normalise(x) * gain + bias).to(x.dtype)


def normalise(x: Float[Tensor, "*M D"]) -> Float[Tensor, "*M D"]:
    """``(x - mean) / sqrt(var + 1e-5)`` over the last axis, in float32."""
    wide = x.to(statistics_dtype(x.dtype))
    centred = wide - wide.mean(-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + EPSILON)


def gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """GELU by its tanh approximation: ``x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))``."""
    return F.gelu(x, approximate="tanh")


def visibility(inputs: Inputs, plan: Plan) -> Shaped[Tensor, "#B T T"] | None:
    """Which positions (rows) may see which others (columns); one mask for all blocks and heads.

    ``None`` where rows are whole, and where the fused kernel is told the boundaries of documents: then it
    skips what nobody sees. Else written-out attention gets truth values, and the fused kernel what it adds to
    the scores: 0 or minus infinity.
    """
    fused = plan.attention != "written"
    if inputs.segment_starts is None or (fused and inputs.boundaries is not None):
        return None
    mask = visible(inputs.segment_starts)
    return torch.where(mask, 0.0, -torch.inf).to(plan.dtype) if fused else mask
