"""GPT-2, forward and backward, over either set of ops: ``gpt_triton.reference`` or ``gpt_triton.kernels``.

    x_0 = dropout(wte[token] + wpe[position])
    y   = x_l + dropout(attention(norm(x_l)) W_out)
    x_{l+1} = y + dropout(gelu(norm(y) W_up) W_down)
    logits = norm(x_L) wte^T

Biases are left out above. Each function comes as a pair: ``_fwd`` gives its result and what is kept, ``_bwd``
walks the same lines from last to first, drops each block's residuals as soon as they are used, and adds the
gradients of parameters in place. Weights are ``(in, out)``, as OpenAI stored them.

Shapes: B rows, T positions, M tokens of all rows (B T), C longest context, V vocabulary, Vp the same padded,
D width, L blocks, H heads, K head width, P elements of the flat buffer, n of a part of it.

References:
    Radford et al. 2019, "Language models are unsupervised multitask learners".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from gpt_trainer.philox import Site
from jaxtyping import Float, Float32, Int
from torch import Tensor

from gpt_triton.dropout import Drops, dropouts
from gpt_triton.ops import NOTHING, BlockResiduals, Keep, NormResiduals, Ops, Residuals


class Block(NamedTuple):
    """Parameters of one block, or anything of the same shapes; the fields in canonical order."""

    ln1_gain: Float[Tensor, " D"]
    ln1_bias: Float[Tensor, " D"]
    qkv_weight: Float[Tensor, "D 3*D"]  # columns: queries, keys, values
    qkv_bias: Float[Tensor, " 3*D"]
    out_weight: Float[Tensor, "D D"]
    out_bias: Float[Tensor, " D"]
    ln2_gain: Float[Tensor, " D"]
    ln2_bias: Float[Tensor, " D"]
    up_weight: Float[Tensor, "D 4*D"]
    up_bias: Float[Tensor, " 4*D"]
    down_weight: Float[Tensor, "4*D D"]
    down_bias: Float[Tensor, " D"]


class Parameters(NamedTuple):
    """The whole model, or anything of the same shapes; the head is ``wte`` transposed.

    ``flat`` is the buffer that all others are views into: the blocks' matrices first (``muon_count``
    elements), embeddings (up to ``decay_count``), gains and biases. So one kernel is enough for AdamW, and
    one for the norm. See ``gpt_triton.tree``.
    """

    wte: Float[Tensor, "Vp D"]
    wpe: Float[Tensor, "C D"]
    blocks: tuple[Block, ...]
    ln_f_gain: Float[Tensor, " D"]
    ln_f_bias: Float[Tensor, " D"]
    flat: Float[Tensor, " P"]
    muon_count: int
    decay_count: int


class Stretch(NamedTuple):
    """Elements of a flat buffer, or of something of its layout: from ``start`` on."""

    values: Float[Tensor, " n"]
    start: int = 0


@dataclass(frozen=True)
class Plan:
    """What the passes need to know beside their tensors; fixed while a model lives.

    Attributes:
        n_head: Attention heads per block.
        vocab_size: Token ids before padding.
        ops: The kernels, or their reference.
        dtype: Type of activations and of the matrices in products; statistics stay float32.
        keep: What a block keeps for its backward.
        dropout: Rate at all four sites, when there are keys.
    """

    n_head: int
    vocab_size: int
    ops: Ops
    dtype: torch.dtype = torch.float32
    keep: Keep = NOTHING
    dropout: float = 0.0


class Inputs(NamedTuple):
    """One micro-batch on the device; see ``gpt_data.batch.Batch``."""

    tokens: Int[Tensor, "B T"]
    targets: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    segment_starts: Int[Tensor, "B T"] | None = None


def hidden_states(
    params: Parameters, inputs: Inputs, plan: Plan, keys: Int[Tensor, "L 4 3"] | None = None
) -> Float[Tensor, "M D"]:
    """What the head sees: the residual stream after the last block and its LayerNorm.

    Args:
        params: Matrices in ``plan.dtype``, vectors in float32.
        keys: As ``dropout_keys`` makes them; ``None`` means no dropout.
    """
    x = embed(params, inputs, plan, keys)
    for layer, block in enumerate(params.blocks):
        x, _ = apply_block_fwd(block, x, inputs, plan, _drops(keys, layer, inputs, plan), NOTHING)
    return plan.ops.layer_norm_fwd(x, params.ln_f_gain, params.ln_f_bias)[0]


def hidden_states_fwd(
    params: Parameters, inputs: Inputs, plan: Plan, keys: Int[Tensor, "L 4 3"] | None = None
) -> tuple[Float[Tensor, "M D"], Residuals]:
    """``hidden_states``, and what its backward needs.

    Args:
        params: Matrices in ``plan.dtype``, vectors in float32.
        keys: As ``dropout_keys`` makes them; ``None`` means no dropout.
    """
    x, kept = embed(params, inputs, plan, keys), []
    for layer, block in enumerate(params.blocks):
        drops = _drops(keys, layer, inputs, plan)
        x, residuals = apply_block_fwd(block, x, inputs, plan, drops, plan.keep)
        kept.append(residuals)
    hidden, norm_f = plan.ops.layer_norm_fwd(x, params.ln_f_gain, params.ln_f_bias)
    return hidden, Residuals(kept, norm_f)


def hidden_states_bwd(
    params: Parameters,
    d_params: Parameters,
    inputs: Inputs,
    residuals: Residuals,
    d_hidden: Float[Tensor, "M D"],
    plan: Plan,
    keys: Int[Tensor, "L 4 3"] | None = None,
) -> None:
    """Add every parameter's gradient to ``d_params``; ``residuals.blocks`` is consumed.

    Args:
        params: As in the forward.
        d_params: Gradients, added to.
        keys: As in the forward.
    """
    ops = plan.ops
    d_gain, d_bias = d_params.ln_f_gain, d_params.ln_f_bias
    d_x = ops.layer_norm_bwd(residuals.norm_f, params.ln_f_gain, d_hidden, d_gain, d_bias)
    for layer in reversed(range(len(params.blocks))):
        block, d_block = params.blocks[layer], d_params.blocks[layer]
        drops = _drops(keys, layer, inputs, plan)
        d_x = apply_block_bwd(block, d_block, residuals.blocks.pop(), d_x, plan, drops)
    drop = _drops(keys, 0, inputs, plan)[Site.EMBEDDING]
    ops.embedding_bwd(inputs.tokens, inputs.positions, d_x, d_params.wte, d_params.wpe, drop)


def logits(params: Parameters, inputs: Inputs, plan: Plan) -> Float32[Tensor, "B T V"]:
    """All logits, without dropout.

    Args:
        params: Matrices in ``plan.dtype``, vectors in float32.
    """
    z = head_logits(hidden_states(params, inputs, plan), params.wte, plan)
    return z.view(*inputs.tokens.shape, -1)


def head_logits(
    hidden: Float[Tensor, "M D"], wte: Float[Tensor, "Vp D"], plan: Plan
) -> Float32[Tensor, "M V"]:
    """Logits in float32, whatever the dtype of the model."""
    return wide_product(hidden, wte[: plan.vocab_size].T)


def wide_product(a: Float[Tensor, "*n M K"], b: Float[Tensor, "*n K N"]) -> Float32[Tensor, "*n M N"]:
    """``a b`` in float32, whatever their dtype; on a GPU no copy of either is widened for it."""
    if a.dtype == torch.float32 or not a.is_cuda:
        return a.float() @ b.float()
    left, right = (x.reshape(-1, *x.shape[-2:]) for x in (a, b))
    return torch.bmm(left, right, out_dtype=torch.float32).view(*a.shape[:-1], b.shape[-1])


def embed(
    params: Parameters, inputs: Inputs, plan: Plan, keys: Int[Tensor, "L 4 3"] | None
) -> Float[Tensor, "M D"]:
    """The residual stream before the first block."""
    drop = _drops(keys, 0, inputs, plan)[Site.EMBEDDING]
    return plan.ops.embedding_fwd(inputs.tokens, inputs.positions, params.wte, params.wpe, drop)


def _drops(keys: Int[Tensor, "L 4 3"] | None, layer: int, inputs: Inputs, plan: Plan) -> Drops:
    return dropouts(keys, layer, plan.dropout, inputs.tokens.shape[1])


def apply_block_fwd(
    block: Block,
    x: Float[Tensor, "M D"],
    inputs: Inputs,
    plan: Plan,
    drops: Drops,
    keep: Keep,
) -> tuple[Float[Tensor, "M D"], BlockResiduals]:
    """One block: attention, then the MLP, each behind a norm and added to the stream."""
    ops = plan.ops
    normed1, norm1 = ops.layer_norm_fwd(x, block.ln1_gain, block.ln1_bias)
    qkv = ops.linear_fwd(normed1, block.qkv_weight, block.qkv_bias)  # [M, 3D]
    attended, attention = ops.attention_fwd(
        qkv.view(*inputs.tokens.shape, -1),  # [B, T, 3D]
        plan.n_head,
        inputs.segment_starts,
        drops[Site.ATTENTION],
    )
    drop = drops[Site.ATTENTION_RESIDUAL]
    y = ops.linear_residual_fwd(attended.view(x.shape), block.out_weight, block.out_bias, x, drop)  # [M, D]

    normed2, norm2 = ops.layer_norm_fwd(y, block.ln2_gain, block.ln2_bias)
    hidden, slope = ops.linear_gelu_fwd(normed2, block.up_weight, block.up_bias, keep.hidden)  # [M, 4D]
    drop = drops[Site.MLP_RESIDUAL]
    out = ops.linear_residual_fwd(hidden, block.down_weight, block.down_bias, y, drop)  # [M, D]
    return out, BlockResiduals(
        norm1,
        normed1 if keep.norm1 else None,
        attention,
        norm2,
        normed2 if keep.norm2 else None,
        hidden if keep.hidden else None,
        slope,
    )


def apply_block_bwd(
    block: Block,
    d_block: Block,
    kept: BlockResiduals,
    d_out: Float[Tensor, "M D"],
    plan: Plan,
    drops: Drops,
) -> Float[Tensor, "M D"]:
    """The gradient of the block's input, from that of its output: the MLP first, then attention.

    Without dropout the gradient of a branch is that of the stream.

    Args:
        d_block: Gradients, added to.
    """
    norm1, normed1, attention, norm2, *mlp = kept
    del kept
    d_y = _mlp_bwd(block, d_block, norm2, mlp, d_out, plan, drops)
    del norm2, d_out

    ops, drop = plan.ops, drops[Site.ATTENTION_RESIDUAL]
    d_branch = d_y if drop is None else ops.dropout_bwd(d_y, drop)
    attended = attention.out.view(d_y.shape)
    ops.linear_bwd_dwdb(attended, d_branch, d_block.out_weight, d_block.out_bias)
    d_attended = ops.linear_bwd_dx(d_branch, block.out_weight).view(attention.out.shape)  # [B, T, D]
    d_qkv = ops.attention_bwd(attention, d_attended, plan.n_head, drops[Site.ATTENTION])
    d_qkv = d_qkv.view(d_y.shape[0], -1)  # [M, 3D]
    del attention, attended, d_attended, d_branch
    if normed1 is None:
        normed1, _ = ops.layer_norm_fwd(norm1.x, block.ln1_gain, block.ln1_bias)
    ops.linear_bwd_dwdb(normed1, d_qkv, d_block.qkv_weight, d_block.qkv_bias)
    d_normed = ops.linear_bwd_dx(d_qkv, block.qkv_weight)  # [M, D]
    return ops.layer_norm_bwd(norm1, block.ln1_gain, d_normed, d_block.ln1_gain, d_block.ln1_bias, d_y)


def _mlp_bwd(
    block: Block,
    d_block: Block,
    norm: NormResiduals,
    kept: list[Tensor | None],
    d_out: Float[Tensor, "M D"],
    plan: Plan,
    drops: Drops,
) -> Float[Tensor, "M D"]:
    """The gradient between the branches; ``kept`` is the norm's output, hidden values and slope, consumed."""
    ops, (normed, hidden, slope) = plan.ops, kept
    kept.clear()
    if normed is None:
        normed, _ = ops.layer_norm_fwd(norm.x, block.ln2_gain, block.ln2_bias)
    if hidden is None:
        hidden, slope = ops.linear_gelu_fwd(normed, block.up_weight, block.up_bias)
    assert slope is not None
    drop = drops[Site.MLP_RESIDUAL]
    d_branch = d_out if drop is None else ops.dropout_bwd(d_out, drop)
    ops.linear_bwd_dwdb(hidden, d_branch, d_block.down_weight, d_block.down_bias)
    del hidden
    d_pre = ops.linear_gelu_bwd_dx(d_branch, block.down_weight, slope)  # [M, 4D]
    del slope
    ops.linear_bwd_dwdb(normed, d_pre, d_block.up_weight, d_block.up_bias)
    d_normed = ops.linear_bwd_dx(d_pre, block.up_weight)  # [M, D]
    del d_pre, normed
    return ops.layer_norm_bwd(norm, block.ln2_gain, d_normed, d_block.ln2_gain, d_block.ln2_bias, d_out)
