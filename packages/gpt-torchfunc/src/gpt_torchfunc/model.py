"""GPT-2 as pure functions of a tree of tensors.

    x_0 = wte[token] + wpe[position]
    y   = x_l + Attention(LayerNorm(x_l))
    x_{l+1} = y + MLP(LayerNorm(y))
    logits = LayerNorm(x_L) wte^T

Nothing here holds state: a function takes the parameters and returns values, and ``torch.func``
turns it into its derivative. Weights are ``(in, out)``, as OpenAI stored them.

Shapes: B rows, T positions, M tokens of all rows (B T), C longest context, V vocabulary (padded), D width,
H heads, K head width, L blocks, R bytes of a mask for D.

References:
    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from gpt_trainer.philox import Site
from jaxtyping import Float, Int, Int64, Shaped, UInt8
from torch import Tensor

from gpt_torchfunc.attention import Bits, attend, attend_fused, draw_weights, visible
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

    wte: Float[Tensor, "V D"]
    wpe: Float[Tensor, "C D"]
    blocks: Block
    ln_f_gain: Float[Tensor, " D"]
    ln_f_bias: Float[Tensor, " D"]


LEAF_NAMES = ("wte", "wpe", *Block._fields, "ln_f_gain", "ln_f_bias")
Leaves = dict[str, Tensor]
"""Some or all of a tree's tensors by name, in this order."""


def leaves(tree: Parameters) -> list[Tensor]:
    """The tree's tensors, in the order of ``LEAF_NAMES``."""
    return [tree.wte, tree.wpe, *tree.blocks, tree.ln_f_gain, tree.ln_f_bias]


def from_leaves(values: Iterable[Tensor]) -> Parameters:
    """The tree that ``leaves`` took apart."""
    wte, wpe, *blocks, ln_f_gain, ln_f_bias = values
    return Parameters(wte, wpe, Block(*blocks), ln_f_gain, ln_f_bias)


def map_leaves(function: Callable[[Tensor], Tensor], tree: Parameters) -> Parameters:
    """``function`` of every tensor, as a tree."""
    return from_leaves([function(leaf) for leaf in leaves(tree)])


def named_leaves(tree: Parameters) -> Leaves:
    """The tree's tensors by name, in order."""
    return dict(zip(LEAF_NAMES, leaves(tree), strict=True))


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
    if keys is not None:
        plan = written(plan)
    x = embed(params, inputs, plan)
    if keys is not None:
        bits = draw_rows((*inputs.tokens.shape, x.shape[1]), keys[0, Site.EMBEDDING], plan.dropout)
        x = dropout(x, bits, plan.dropout)
    mask = attention_mask(inputs, plan)
    for layer, block in enumerate(unstack(params.blocks)):
        x = apply_block(block, x, inputs, mask, plan, None if keys is None else keys[layer])
    return layer_norm(x, params.ln_f_gain, params.ln_f_bias)


def written(plan: Plan) -> Plan:
    """The plan of a pass with dropout: torch's fused kernel would draw its own random numbers."""
    return replace(plan, attention="written")


def logits(params: Parameters, inputs: Inputs, plan: Plan) -> Float[Tensor, "B T V"]:
    """All logits, without dropout; columns past ``plan.vocab_size`` are padding."""
    z = hidden_states(params, inputs, plan) @ params.wte.to(plan.dtype).T
    return z.unflatten(0, inputs.tokens.shape)


def unstack(blocks: Block) -> list[Block]:
    """The blocks one by one, as views."""
    return [Block(*leaves) for leaves in zip(*(leaf.unbind(0) for leaf in blocks), strict=True)]


def embed(params: Parameters, inputs: Inputs, plan: Plan) -> Float[Tensor, "M D"]:
    """Sum of token and position embeddings.

    The rows are gathered from the float32 parameters: the derivative of a gather is a sum over all
    occurrences of a token, and frequent tokens would lose theirs in bfloat16.
    """
    context = inputs.tokens.shape[1]
    if inputs.segment_starts is None:
        position_rows = params.wpe[:context]
    else:
        position_rows = F.embedding(positions(inputs), params.wpe)
    return (F.embedding(inputs.tokens, params.wte) + position_rows).to(plan.dtype).flatten(0, 1)


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
    """One block: attention, then the two-layer network, each normalised before and added after.

    Its five pieces are functions of what a backward pass keeps, each with the parameters it needs.
    """
    heads = project(x, *block[:4], shape=(*inputs.tokens.shape, plan.n_head))
    masks = Masks()
    if keys is not None:
        masks = Masks(*draw_masks(keys, (*inputs.tokens.shape, plan.n_head, x.shape[1]), plan.dropout))
    mixed = mix(*heads, mask, inputs.boundaries, plan, masks.attention)
    y = x + merge(mixed, *block[4:6], masks.out, plan.dropout)
    hidden = expand(y, *block[6:10])
    return y + contract(hidden, *block[10:], masks.down, plan.dropout)


def draw_masks(
    keys: Int64[Tensor, "4 3"], shape: tuple[int, int, int, int], rate: float
) -> tuple[Bits, UInt8[Tensor, "M R"], UInt8[Tensor, "M R"]]:
    """The fields of a block's ``Masks``.

    Args:
        shape: Rows, positions, heads, width.
    """
    rows, context, heads, width = shape
    out, down = (
        draw_rows((rows, context, width), keys[site], rate)
        for site in (Site.ATTENTION_RESIDUAL, Site.MLP_RESIDUAL)
    )
    return draw_weights((rows, heads, context), keys[Site.ATTENTION], rate), out, down


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


def merge(
    mixed: Float[Tensor, "M D"],
    weight: Float[Tensor, "D D"],
    bias: Float[Tensor, " D"],
    bits: UInt8[Tensor, "M R"] | None,
    rate: float,
) -> Float[Tensor, "M D"]:
    """What attention adds to the residual stream."""
    return dropout(linear(mixed, weight, bias), bits, rate)


def expand(
    y: Float[Tensor, "M D"],
    gain: Float[Tensor, " D"],
    norm_bias: Float[Tensor, " D"],
    weight: Float[Tensor, "D E"],
    bias: Float[Tensor, " E"],
) -> Float[Tensor, "M E"]:
    """The network's hidden layer before GELU, from the LayerNorm of ``y``; E = 4 D."""
    (hidden,) = norm_linear(y, gain, norm_bias, weight, bias, 1)
    return hidden


def contract(
    hidden: Float[Tensor, "M E"],
    weight: Float[Tensor, "E D"],
    bias: Float[Tensor, " D"],
    bits: UInt8[Tensor, "M R"] | None,
    rate: float,
) -> Float[Tensor, "M D"]:
    """What the network adds to the residual stream."""
    return dropout(gelu_linear(hidden, weight, bias), bits, rate)


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


def attention_mask(inputs: Inputs, plan: Plan) -> Shaped[Tensor, "#B T T"] | None:
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


def mix(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H T K"],
    v: Float[Tensor, "B H T K"],
    mask: Shaped[Tensor, "#B T T"] | None,
    boundaries: Int[Tensor, " S"] | None,
    plan: Plan,
    bits: Bits | None,
) -> Float[Tensor, "M D"]:
    """Attention by the form that the plan names."""
    if plan.attention == "written":
        # heads that lie side by side would be copied apart for every tile
        q, k, v = (heads.contiguous() for heads in (q, k, v))
        out = attend(q, k, v, mask, bits, plan.dropout)
    else:
        out = attend_fused(q, k, v, mask, boundaries)
    return out.transpose(1, 2).flatten(2).flatten(0, 1)


def split_heads(
    qkv: Float[Tensor, "B T W"], n_head: int
) -> tuple[Float[Tensor, "B H T K"], Float[Tensor, "B H T K"], Float[Tensor, "B H T K"]]:
    """Queries, keys and values by head; W = 3 D."""
    q, k, v = qkv.unflatten(-1, (3, n_head, -1)).unbind(2)  # each [B, T, H, K]
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    """Type of softmax and loss statistics: float32, or float64 when a check runs in it."""
    return torch.promote_types(dtype, torch.float32)
