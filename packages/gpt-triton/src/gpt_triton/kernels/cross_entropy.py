"""Output head and cross-entropy in one pass over chunks of tokens, so that no [M, V] tensor ever exists.

    z = x W^T,   nll = logsumexp(z) - z[target],   d_z = weight (softmax(z) - onehot(target)),
    d_x = d_z W,   d_W = d_z^T x

A chunk's logits lie in one buffer, in the dtype of ``x``; their gradient overwrites them. Targets of
``IGNORE`` give no loss and no gradient, and padded columns get none. Shapes: M tokens, D width, V
vocabulary, Vp padded vocabulary, m tokens of a chunk.
"""

from __future__ import annotations

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.kernels.matmul import product
from gpt_triton.kernels.primitives import INTERPRET, LN_2, LOG2_E, multiprocessors, narrow, widen


@triton.jit
@no_type_check
def _scores(logits_ptr, at, V, Vp, MASKED: tl.constexpr):
    """Logits of a block; past the vocabulary they have no weight.

    The load's mask ends at a multiple of 128, so that a thread still loads eight at once.
    """
    if MASKED:
        z = tl.load(logits_ptr + at, mask=at < Vp, other=0.0)
        return tl.where(at < V, widen(z), float("-inf"))
    else:  # noqa: RET505  # the compiler drops only the other branch of a whole if
        return widen(tl.load(logits_ptr + at))


@triton.jit
@no_type_check
def _absorb(z, top, total):
    """Take eight more columns per lane into its maximum and its sum of exponentials relative to that."""
    new_top = tl.maximum(top, tl.max(z, 1))
    shift = tl.where(new_top == float("-inf"), 0.0, new_top) * LOG2_E
    # exp2 is one instruction, and log2(e) times z minus the shift another
    return new_top, total * tl.exp2(top * LOG2_E - shift) + tl.sum(tl.exp2(z * LOG2_E - shift[:, None]), 1)


@triton.jit
@no_type_check
def _cross_entropy_kernel(
    logits_ptr,  # [m, Vp] overwritten by d_logits, if weight_ptr is given
    targets_ptr,  # [m]
    weight_ptr,  # [] or None: no gradient
    nll_ptr,  # [m] written
    V: tl.constexpr,
    Vp: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # from the last row, whose logits the product wrote last: some are still in L2
    row = (tl.num_programs(0) - 1 - tl.program_id(0)).to(tl.int64)
    logits_ptr += row * Vp
    target = tl.load(targets_ptr + row)
    # a lane takes eight neighbouring columns at a step, and keeps a maximum and a sum of its own: a power for
    # each column and one for all eight, and a single reduction over the lanes at the end
    column = tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]
    top = tl.full([BLOCK // 8], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK // 8], tl.float32)
    # whole blocks need no mask: it would cost as much as the softmax
    for first in range(0, V // BLOCK * BLOCK, BLOCK):
        top, total = _absorb(_scores(logits_ptr, column + first, V, Vp, False), top, total)
    for first in tl.static_range(V // BLOCK * BLOCK, V, BLOCK):
        top, total = _absorb(_scores(logits_ptr, column + first, V, Vp, True), top, total)
    highest = tl.max(top, 0)
    lse = highest * LOG2_E + tl.log2(tl.sum(total * tl.exp2((top - highest) * LOG2_E), 0))  # in powers of two
    counted = target >= 0
    z_target = widen(tl.load(logits_ptr + target, mask=counted, other=float("-inf")))
    tl.store(nll_ptr + row, tl.where(counted, lse * LN_2 - z_target, 0.0))
    if weight_ptr is not None:
        weight = tl.where(counted, tl.load(weight_ptr), 0.0)
        for first in range(0, V // BLOCK * BLOCK, BLOCK):
            p = tl.exp2(_scores(logits_ptr, column + first, V, Vp, False) * LOG2_E - lse)
            tl.store(logits_ptr + column + first, narrow(p * weight, logits_ptr.dtype.element_ty))
        for first in tl.static_range(V // BLOCK * BLOCK, Vp, BLOCK):
            at = column + first
            p = tl.exp2(_scores(logits_ptr, at, V, Vp, True) * LOG2_E - lse)
            tl.store(logits_ptr + at, narrow(p * weight, logits_ptr.dtype.element_ty), mask=at < Vp)
        # the one column that differs is written again, rather than looked for in each
        tl.debug_barrier()
        d_target = (tl.exp2(z_target * LOG2_E - lse) - 1.0) * weight
        tl.store(logits_ptr + target, narrow(d_target, logits_ptr.dtype.element_ty), mask=counted)


def linear_cross_entropy(
    x: Float[Tensor, "M D"],
    wte: Float[Tensor, "Vp D"],
    targets: Int[Tensor, " M"],
    vocab_size: int,
    weight: Float[Tensor, ""],
    d_wte: Float[Tensor, "Vp D"],
    chunk: int | None = None,
) -> tuple[Float[Tensor, " M"], Float[Tensor, "M D"]]:
    """Negative log-likelihood of every target, and the gradient of ``weight`` times their sum.

    Args:
        wte: Head, tied to the token table; rows past ``vocab_size`` are padding and take no part.
        d_wte: Added to, float32.
        chunk: Tokens handled at once; by default chosen from the shape.

    Returns:
        The losses (0 where ignored), unweighted, and the gradient of ``x``.
    """
    x = x.contiguous()
    d_x = torch.empty_like(x)
    nll = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    for part, logits in _chunks(x, wte, chunk):
        product(x[part], wte.T, logits)
        _cross_entropy(logits, targets[part], nll[part], vocab_size, weight)
        product(logits, wte, d_x[part])
        product(logits.T, x[part], d_wte, accumulate=True)
    return nll, d_x


def linear_nll(
    x: Float[Tensor, "M D"],
    wte: Float[Tensor, "Vp D"],
    targets: Int[Tensor, " M"],
    vocab_size: int,
    chunk: int | None = None,
) -> Float[Tensor, " M"]:
    """Negative log-likelihood of every target, 0 where ignored.

    Args:
        wte: Head; rows past ``vocab_size`` take no part.
        chunk: Tokens handled at once; by default chosen from the shape.
    """
    x = x.contiguous()
    nll = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    for part, logits in _chunks(x, wte, chunk):
        product(x[part], wte.T, logits)
        _cross_entropy(logits, targets[part], nll[part], vocab_size, None)
    return nll


def _chunks(
    x: Float[Tensor, "M D"], wte: Float[Tensor, "Vp D"], chunk: int | None
) -> list[tuple[slice, Float[Tensor, "m Vp"]]]:
    """Slices of the tokens, each with its part of one buffer of logits."""
    tokens, padded = x.shape[0], wte.shape[0]
    rows = min(tokens, chunk or cross_entropy_chunk(tokens, padded, x.device))
    buffer = x.new_empty(rows, padded)
    return [
        (slice(first, min(first + rows, tokens)), buffer[: min(rows, tokens - first)])
        for first in range(0, tokens, rows)
    ]


def _cross_entropy(
    logits: Float[Tensor, "m Vp"],
    targets: Int[Tensor, " m"],
    nll: Float[Tensor, " m"],
    vocab_size: int,
    weight: Float[Tensor, ""] | None,
) -> None:
    rows, padded = logits.shape
    block = vocabulary_block(padded)
    warps = max(1, min(32, block // 256))  # 8 columns per thread and step
    _cross_entropy_kernel[(rows,)](
        logits, targets.contiguous(), weight, nll,
        V=vocab_size, Vp=padded, BLOCK=block, num_warps=warps,
    )  # fmt: skip


def cross_entropy_chunk(tokens: int, padded_vocab: int, device: torch.device) -> int:
    """Tokens per chunk of logits.

    On a GPU the chunk is a number of whole waves of 128-row tiles for the head's d_x product, within about
    1.2 GB of bfloat16 logits; elsewhere within 2^22 logits.
    """
    if device.type == "cpu":
        return max(1, min(tokens, (1 << 22) // padded_vocab))
    wave = 128 * max(1, multiprocessors(device) * 2 // 3)
    return max(128, min(tokens, max(1, (600 << 20) // (padded_vocab * wave)) * wave))


def vocabulary_block(padded_vocab: int) -> int:
    """Columns per step of the softmax over one row of logits: 8 per thread of 32 warps.

    Two such programs fill a multiprocessor: their rows, 27 MB together, are still in L2 for the second pass.
    """
    return min(1 << 14 if INTERPRET.value else 8192, max(16, triton.next_power_of_2(padded_vocab)))
