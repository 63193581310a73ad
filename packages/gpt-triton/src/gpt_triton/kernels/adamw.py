"""Global norm and AdamW over flat buffers.

    g   = grad min(1, clip / norm)
    m  += (1 - b1) (g - m),   v += (1 - b2) (g^2 - v)
    w  -= lr (m / c1 / (sqrt(v / c2) + eps) + decay w),   c_i = 1 - b_i^t

A step whose norm is not finite or exceeds ``skip_above`` writes nothing: that is decided on the device,
so that nothing waits for the host. Shapes: P elements of a flat buffer, G blocks.

References:
    Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
"""

from __future__ import annotations

import math
from typing import no_type_check

import triton
import triton.language as tl
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Float
from torch import Tensor

from gpt_triton.kernels.primitives import INTERPRET, narrow

FLAT_BLOCK = 1 << 16 if INTERPRET.value else 1024
"""Elements per program of the update: 8 per thread of 4 warps, two float32 loads."""
NORM_BLOCK = 1 << 14 if INTERPRET.value else 8192
"""Elements whose squares one program sums."""


@triton.jit
@no_type_check
def _squares_kernel(
    x_ptr,  # [P]
    parts_ptr,  # [G] written
    P,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    i = program * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < P, other=0.0)
    tl.store(parts_ptr + program, tl.sum(x * x, 0))


@triton.jit
@no_type_check
def _root_of_sum_kernel(
    parts_ptr,  # [G]
    norm_ptr,  # [1] written
    G,
    BLOCK: tl.constexpr,
):
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, G, BLOCK):
        i = tl.arange(0, BLOCK) + first
        total += tl.load(parts_ptr + i, mask=i < G, other=0.0)
    tl.store(norm_ptr, tl.sqrt(tl.sum(total, 0)))


@triton.jit
@no_type_check
def counts(norm, skip_above):
    """Whether a step does: its norm is finite and not too large."""
    # NaN and infinity compare false with the largest float
    return (norm <= skip_above) & (norm <= 3.4028234663852886e38)


@triton.jit
@no_type_check
def clipping(norm, clip_norm):
    """What the gradient is multiplied by."""
    # a norm of 0 must not divide
    return tl.where(norm > clip_norm, clip_norm / tl.maximum(norm, 1e-30), 1.0)


@triton.jit
@no_type_check
def _adamw_kernel(
    weights_ptr,  # [P] changed
    gradients_ptr,  # [P]
    first_ptr,  # [P] changed
    second_ptr,  # [P] changed
    shadow_ptr,  # [P] written, or None
    norm_ptr,  # [1]
    scalars_ptr,  # [4] learning rate, 1 - b1^t, 1 - b2^t, skip_above
    P,
    decay_count,
    rate1,  # 1 - b1, subtracted in float64: 1 - 0.999 in float32 is 3e-5 off
    rate2,
    epsilon,
    weight_decay,
    clip_norm,  # infinity: no clipping
    BLOCK: tl.constexpr,
):
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lr, correction1 = tl.load(scalars_ptr), tl.load(scalars_ptr + 1)
    correction2, skip_above = tl.load(scalars_ptr + 2), tl.load(scalars_ptr + 3)
    norm = tl.load(norm_ptr)
    apply = counts(norm, skip_above)
    keep = i < tl.where(apply, P, 0)
    lr = tl.where(apply, lr, 0.0)
    clip = clipping(norm, clip_norm)
    g = tl.load(gradients_ptr + i, mask=keep, other=0.0) * clip
    w = tl.load(weights_ptr + i, mask=i < P, other=0.0)
    m = tl.load(first_ptr + i, mask=keep, other=0.0)
    v = tl.load(second_ptr + i, mask=keep, other=0.0)
    m += rate1 * (g - m)
    v += rate2 * (g * g - v)
    decay = tl.where(i < decay_count, weight_decay, 0.0)
    step = m / correction1 / (tl.sqrt(v / correction2) + epsilon)
    w -= lr * (step + decay * w)
    tl.store(weights_ptr + i, w, mask=keep)
    tl.store(first_ptr + i, m, mask=keep)
    tl.store(second_ptr + i, v, mask=keep)
    if shadow_ptr is not None:
        tl.store(shadow_ptr + i, narrow(w, shadow_ptr.dtype.element_ty), mask=i < P)


def global_norm(flat: Float[Tensor, " P"]) -> Float[Tensor, " 1"]:
    """Euclidean norm: blocks first, then the blocks' sums, in a fixed order.

    Args:
        flat: Buffer of float32.
    """
    blocks = triton.cdiv(flat.numel(), NORM_BLOCK)
    parts, norm = flat.new_empty(blocks), flat.new_empty(1)
    _squares_kernel[(blocks,)](flat, parts, flat.numel(), BLOCK=NORM_BLOCK)
    _root_of_sum_kernel[(1,)](parts, norm, blocks, BLOCK=1024)
    return norm


def adamw_update(
    weights: Float[Tensor, " P"],
    gradients: Float[Tensor, " P"],
    first: Float[Tensor, " P"],
    second: Float[Tensor, " P"],
    shadow: Float[Tensor, " P"] | None,
    decay_count: int,
    norm: Float[Tensor, " 1"],
    scalars: Float[Tensor, " 4"],
    config: OptimizerConfig,
) -> None:
    """One step in place.

    Args:
        weights: Master weights, changed.
        gradients: Unclipped gradients.
        first: First moment, changed.
        second: Second moment, changed.
        shadow: Copy of the weights in bfloat16, rewritten.
        decay_count: Elements that decay, from the first on.
        norm: Of the whole gradient.
        scalars: As ``step_scalars`` makes them, on the device.
    """
    count = weights.numel()
    _adamw_kernel[(triton.cdiv(count, FLAT_BLOCK),)](
        weights, gradients, first, second, shadow, norm, scalars, count, decay_count,
        1.0 - config.beta1, 1.0 - config.beta2, config.epsilon, config.weight_decay,
        config.clip_norm or math.inf, BLOCK=FLAT_BLOCK,
    )  # fmt: skip
