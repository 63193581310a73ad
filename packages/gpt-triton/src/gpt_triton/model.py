"""GPT-2, forward and backward, over either set of ops: ``gpt_triton.reference`` or ``gpt_triton.kernels``.

    x = dropout(wte[token] + wpe[position])
    for each block:  x += dropout(attention(norm(x)) W_out),   x += dropout(gelu(norm(x) W_fc) W_proj)
    hidden = norm(x),   logits = hidden wte^T

Biases are left out above. The backward walks the same lines from last to first, and drops each block's
residuals as soon as they are used. What is kept for it and what it computes again stands in ``keeping``.
Shapes: B rows, T positions, M = B*T, D width, H heads, L blocks, V vocabulary.

References:
    Radford et al. 2019, "Language models are unsupervised multitask learners".
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

from gpt_trainer.philox import Site
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.buffers import BlockParams, Params
from gpt_triton.keeping import NOTHING, Keep
from gpt_triton.residuals import AttentionResiduals, Dropout, NormResiduals


class Inputs(NamedTuple):
    """What one forward pass reads besides the parameters.

    Attributes:
        tokens: Token ids.
        positions: Rows of ``wpe``.
        segment_starts: First position that each position may see; ``None`` means 0.
        keys: Philox key of every dropout site; unused at rate 0.
        prefix_lengths: Positions of each row that all later ones see besides; ``None`` means 0, as it
            must be before a backward.
    """

    tokens: Int[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    segment_starts: Int[Tensor, "B T"] | None
    keys: Int[Tensor, "L 4 2"]
    prefix_lengths: Int[Tensor, " B"] | None = None

    def dropout(self, rate: float, layer: int, site: Site) -> Dropout | None:
        """The mask of one site, or ``None`` at rate 0."""
        return Dropout(rate, self.keys[layer, site]) if rate > 0.0 else None


class BlockResiduals(NamedTuple):
    """Kept by one block; ``None`` where the backward computes it again.

    Attributes:
        norm1: Of the norm before attention; its ``x`` is the block's input.
        normed1: That norm's output.
        attention: Queries, keys, values, output and log-sum-exp.
        norm2: Of the norm before the MLP; its ``x`` is the stream between the branches.
        normed2: That norm's output.
        hidden: Hidden values of the MLP after GELU.
        slope: GELU's slope before it.
    """

    norm1: NormResiduals
    normed1: Float[Tensor, "M D"] | None
    attention: AttentionResiduals
    norm2: NormResiduals
    normed2: Float[Tensor, "M D"] | None
    hidden: Float[Tensor, "M 4*D"] | None
    slope: Float[Tensor, "M 4*D"] | None


class Residuals(NamedTuple):
    """Kept by the whole forward; ``blocks`` is emptied by the backward."""

    blocks: list[BlockResiduals]
    norm_f: NormResiduals


def forward(
    ops: ModuleType,
    params: Params,
    inputs: Inputs,
    n_head: int,
    rate: float = 0.0,
    keep: Keep | None = None,
) -> tuple[Float[Tensor, "M D"], Residuals]:
    """Final hidden states, after the last norm.

    Args:
        rate: Dropout rate; 0 outside training.
        keep: What the blocks keep for a backward; ``None`` if there is none.
    """
    kept: list[BlockResiduals] = []
    embedding = inputs.dropout(rate, 0, Site.EMBEDDING)
    x = ops.embedding_fwd(inputs.tokens, inputs.positions, params.wte, params.wpe, embedding)  # [M, D]
    for layer, block in enumerate(params.blocks):
        x, residuals = _block_fwd(ops, block, x, inputs, n_head, rate, layer, keep or NOTHING)
        if keep is not None:
            kept.append(residuals)
    hidden, norm_f = ops.layer_norm_fwd(x, params.ln_f_gain, params.ln_f_bias)
    return hidden, Residuals(kept, norm_f)


def backward(
    ops: ModuleType,
    params: Params,
    d_params: Params,
    inputs: Inputs,
    residuals: Residuals,
    d_hidden: Float[Tensor, "M D"],
    n_head: int,
    rate: float = 0.0,
) -> None:
    """Add every parameter's gradient to ``d_params``; ``residuals.blocks`` is consumed.

    Args:
        d_params: Gradients, added to.
    """
    # gradients of the bias that joined the stream below each block and below the last norm
    d_below = [None, *(block.proj_bias if rate == 0.0 else None for block in d_params.blocks)]
    d_gain, d_bias = d_params.ln_f_gain, d_params.ln_f_bias
    d_x = ops.layer_norm_bwd(residuals.norm_f, params.ln_f_gain, d_hidden, d_gain, d_bias, None, d_below[-1])
    for layer in reversed(range(len(params.blocks))):
        block, d_block = params.blocks[layer], d_params.blocks[layer]
        kept = residuals.blocks.pop()
        d_x = _block_bwd(ops, block, d_block, kept, d_x, d_below[layer], inputs, n_head, rate, layer)
    embedding = inputs.dropout(rate, 0, Site.EMBEDDING)
    ops.embedding_bwd(inputs.tokens, inputs.positions, d_x, d_params.wte, d_params.wpe, embedding)


def _block_fwd(
    ops: ModuleType,
    p: BlockParams,
    x: Float[Tensor, "M D"],
    inputs: Inputs,
    n_head: int,
    rate: float,
    layer: int,
    keep: Keep,
) -> tuple[Float[Tensor, "M D"], BlockResiduals]:
    """One block: attention, then the MLP, each behind a norm and added to the stream."""
    normed1, norm1 = ops.layer_norm_fwd(x, p.ln1_gain, p.ln1_bias)
    qkv = ops.linear_fwd(normed1, p.qkv_weight, p.qkv_bias)  # [M, 3D]
    attended, attention = ops.attention_fwd(
        qkv.view(*inputs.tokens.shape, -1),  # [B, T, 3D]
        n_head,
        inputs.segment_starts,
        inputs.dropout(rate, layer, Site.ATTENTION),
        inputs.prefix_lengths,
    )
    drop = inputs.dropout(rate, layer, Site.ATTENTION_RESIDUAL)
    x = ops.linear_residual_fwd(attended.view(x.shape), p.out_weight, p.out_bias, x, drop)  # [M, D]

    normed2, norm2 = ops.layer_norm_fwd(x, p.ln2_gain, p.ln2_bias)
    hidden, slope = ops.linear_gelu_fwd(normed2, p.fc_weight, p.fc_bias, keep.hidden)  # [M, 4D]
    drop = inputs.dropout(rate, layer, Site.MLP_RESIDUAL)
    x = ops.linear_residual_fwd(hidden, p.proj_weight, p.proj_bias, x, drop)  # [M, D]
    return x, BlockResiduals(
        norm1,
        normed1 if keep.norm1 else None,
        attention,
        norm2,
        normed2 if keep.norm2 else None,
        hidden if keep.hidden else None,
        slope,
    )


def _block_bwd(
    ops: ModuleType,
    p: BlockParams,
    d_p: BlockParams,
    residuals: BlockResiduals,
    d_x: Float[Tensor, "M D"],
    d_below: Float[Tensor, " D"] | None,
    inputs: Inputs,
    n_head: int,
    rate: float,
    layer: int,
) -> Float[Tensor, "M D"]:
    """The gradient of the block's input, from that of its output: the MLP first, then attention.

    Without dropout the gradient of a branch is that of the stream. Its sum over rows is then the gradient of
    the branch's bias, and is taken by the norm that makes it: for the branch below by the first norm here,
    into ``d_below``.
    """
    norm1, normed1, attention, norm2, normed2, hidden, slope = residuals
    del residuals

    if normed2 is None:
        normed2, _ = ops.layer_norm_fwd(norm2.x, p.ln2_gain, p.ln2_bias)
    if hidden is None:
        hidden, slope = ops.linear_gelu_fwd(normed2, p.fc_weight, p.fc_bias)
    drop = inputs.dropout(rate, layer, Site.MLP_RESIDUAL)
    d_branch = d_x if drop is None else ops.dropout_bwd(d_x, drop)
    ops.linear_bwd_dwdb(hidden, d_branch, d_p.proj_weight, None if drop is None else d_p.proj_bias)
    del hidden
    d_pre = ops.linear_gelu_bwd_dx(d_branch, p.proj_weight, slope, d_p.fc_bias)  # [M, 4D]
    del slope
    ops.linear_bwd_dwdb(normed2, d_pre, d_p.fc_weight, None)
    d_normed = ops.linear_bwd_dx(d_pre, p.fc_weight)  # [M, D]
    del d_pre, normed2
    drop = inputs.dropout(rate, layer, Site.ATTENTION_RESIDUAL)
    d_bias = d_p.out_bias if drop is None else None
    d_x = ops.layer_norm_bwd(norm2, p.ln2_gain, d_normed, d_p.ln2_gain, d_p.ln2_bias, d_x, d_bias)
    del norm2

    d_branch = d_x if drop is None else ops.dropout_bwd(d_x, drop)
    attended = attention.out.view(d_x.shape)
    ops.linear_bwd_dwdb(attended, d_branch, d_p.out_weight, None if drop is None else d_p.out_bias)
    d_attended = ops.linear_bwd_dx(d_branch, p.out_weight).view(attention.out.shape)  # [B, T, D]
    drop = inputs.dropout(rate, layer, Site.ATTENTION)
    d_qkv = ops.attention_bwd(attention, d_attended, n_head, drop).view(d_x.shape[0], -1)  # [M, 3D]
    del attention, attended, d_attended
    if normed1 is None:
        normed1, _ = ops.layer_norm_fwd(norm1.x, p.ln1_gain, p.ln1_bias)
    ops.linear_bwd_dwdb(normed1, d_qkv, d_p.qkv_weight, d_p.qkv_bias)
    d_normed = ops.linear_bwd_dx(d_qkv, p.qkv_weight)  # [M, D]
    return ops.layer_norm_bwd(norm1, p.ln1_gain, d_normed, d_p.ln1_gain, d_p.ln1_bias, d_x, d_below)
