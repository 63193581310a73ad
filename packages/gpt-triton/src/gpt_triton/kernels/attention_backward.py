"""The backward of attention: the weights are computed again, tile by tile, from the log-sum-exp.

With mask scale R (all ones without dropout) and delta = row sums of d_O * O:

    P = exp(S - lse),   d_V = (P R)^T d_O,   d_P = (d_O V^T) R,   d_S = P (d_P - delta),
    d_Q = d_S K / sqrt(K),   d_K = d_S^T Q / sqrt(K)

Two passes instead of one: a program owns queries and streams keys for delta and d_Q (``attention_d_q``), then
a program owns keys and streams queries for d_K and d_V (``attention_d_kv``). Each sum has one owner, so
nothing is added atomically and a run repeats itself; the price is two products more than the five of a single
pass. Shapes as in ``attention``.

References:
    Dao 2023, "FlashAttention-2", section 3.1.2.
"""

from __future__ import annotations

import math

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from gpt_triton.dropout import Dropout
from gpt_triton.kernels.attention_d_kv import d_kv_kernel
from gpt_triton.kernels.attention_d_q import d_q_kernel
from gpt_triton.kernels.primitives import LOG2_E
from gpt_triton.kernels.tiles import attention_tiles, hopper_attention
from gpt_triton.ops import AttentionResiduals


def attention_bwd(
    res: AttentionResiduals,
    d_out: Float[Tensor, "B T D"],
    n_head: int,
    dropout: Dropout | None = None,
) -> Float[Tensor, "B T 3*D"]:
    """Gradient of queries, keys and values."""
    d_out = d_out.contiguous()
    rows, context, width = d_out.shape
    head_width = width // n_head
    padded = max(16, triton.next_power_of_2(head_width))
    d_qkv, delta = torch.empty_like(res.qkv), torch.empty_like(res.lse)
    keep_scale = 1.0 if dropout is None else 1.0 / (1.0 - dropout.rate)
    scale = 1.0 / math.sqrt(head_width)
    if hopper_attention(res.qkv, head_width, res.segment_starts is not None):
        # imported where they run: Gluon has no interpreter
        from gpt_triton.kernels.attention_hopper_d_kv import launch_d_kv
        from gpt_triton.kernels.attention_hopper_d_q import launch_d_q

        launch_d_q(res, d_out, delta, d_qkv, keep_scale)
        launch_d_kv(res, d_out, delta, d_qkv, keep_scale)
        return d_qkv
    passes = (
        (d_q_kernel, "d_q", (res.qkv, res.out, d_out)),
        (d_kv_kernel, "d_kv", (res.qkv, d_out)),
    )
    for kernel, kind, given in passes:
        tiles = attention_tiles(kind, padded, d_out.dtype, dropout is not None)
        kernel[(rows * n_head, triton.cdiv(context, tiles.stay))](
            *given, res.lse, delta, res.segment_starts, res.mask, d_qkv, context,
            scale, scale * LOG2_E.value, keep_scale,
            H=n_head, K=head_width, STAY=tiles.stay, STREAM=tiles.stream, W=padded,
            num_warps=tiles.warps, num_stages=tiles.stages,
        )  # fmt: skip
    return d_qkv
