"""Global norm, AdamW over flat buffers, and Muon for stacks of matrices.

With g = grad min(1, clip / norm), AdamW:

    m  += (1 - b1) (g - m),   v += (1 - b2) (g^2 - v)
    w  -= lr (m / c1 / (sqrt(v / c2) + eps) + decay w),   c_i = 1 - b_i^t

Muon, momentum made orthogonal by Newton-Schulz:

    m  = mu m + g,   w -= lr (sqrt(max(1, C / R)) orthogonalize(g + mu m) + decay w)

    orthogonalize:  X = G / |G|,   five times  X <- a X + (b X X^T + c (X X^T)^2) X

Each singular value of X goes through the odd polynomial ``a s + b s^3 + c s^5``, whose slope at 0 is 3.4:
after five steps those that were above a 500th lie between 0.68 and 1.21; singular vectors stay.

A step whose norm is not finite or exceeds ``skip_above`` changes nothing: that is decided on the device, so
that nothing waits for the host. Shapes: P elements of a flat buffer, L blocks, K matrices side by side, R
rows, C columns, N = L*K.

References:
    Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". Their matrices are
    (out, in), ours (in, out).
"""

from __future__ import annotations

import torch
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Float
from torch import Tensor

from gpt_triton.optimizer import MUON_MOMENTUM, NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, NORM_FLOOR

NORM_BLOCK = 4096


def global_norm(flat: Float[Tensor, " P"]) -> Float[Tensor, " 1"]:
    """Euclidean norm in two stages: of blocks of 4,096 elements, then of the blocks' norms.

    Two stages keep the rounding error of a float32 sum from growing with the number of elements.
    """
    whole = flat.numel() // NORM_BLOCK * NORM_BLOCK
    parts = torch.linalg.vector_norm(flat[:whole].view(-1, NORM_BLOCK), dim=1)
    rest = torch.linalg.vector_norm(flat[whole:]).view(1)
    return torch.linalg.vector_norm(torch.cat([parts, rest])).view(1)


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
    lr, correction1, correction2, skip_above = scalars
    apply = (norm[0].isfinite() & (norm[0] <= skip_above)).to(norm.dtype)
    clip = (config.clip_norm / norm[0]).clamp(max=1.0) if config.clip_norm > 0 else torch.ones_like(apply)
    lr = lr * apply
    # a skipped step may hold NaN: replaced, not multiplied, by zero
    g = torch.where(apply > 0, gradients * clip, 0.0)
    first.lerp_(g, (1.0 - config.beta1) * apply)
    second.lerp_(g.square(), (1.0 - config.beta2) * apply)
    weights[:decay_count].mul_(1.0 - lr * config.weight_decay)
    weights.sub_(lr * (first / correction1) / ((second / correction2).sqrt() + config.epsilon))
    if shadow is not None:
        shadow.copy_(weights)


def orthogonalize(x: Float[Tensor, "N R C"], dtype: torch.dtype) -> Float[Tensor, "N R C"]:
    """About ``U V^T`` of each matrix ``U S V^T``, in ``dtype``.

    Args:
        dtype: Of the products.
    """
    a, b, c = NEWTON_SCHULZ
    across = x.shape[1] > x.shape[2]  # the products are of the shorter side
    x = (x / (x.square().sum((1, 2), keepdim=True).sqrt() + NORM_FLOOR)).to(dtype)
    x = x.mT if across else x
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if across else x


def muon_update(
    weights: Float[Tensor, "L K R C"],
    gradients: Float[Tensor, "L K R C"],
    momentum: Float[Tensor, "L K R C"],
    shadow: Float[Tensor, "L K R C"] | None,
    norm: Float[Tensor, " 1"],
    scalars: Float[Tensor, " 4"],
    config: OptimizerConfig,
    dtype: torch.dtype,
) -> None:
    """One step in place.

    Args:
        weights: Master weights, changed; views into flat buffers, like the next three.
        gradients: Unclipped; used up.
        momentum: Changed.
        shadow: Copy of the weights in bfloat16, rewritten.
        norm: Of the whole gradient.
        scalars: As ``step_scalars`` makes them.
        dtype: Of the products.
    """
    lr, skip_above = scalars[0] * config.muon_lr_factor, scalars[3]
    apply = norm[0].isfinite() & (norm[0] <= skip_above)
    clip = (config.clip_norm / norm[0]).clamp(max=1.0) if config.clip_norm > 0 else 1.0
    # a skipped step may hold NaN: replaced, not multiplied, by zero
    g = torch.where(apply, gradients * clip, 0.0)
    momentum.copy_(torch.where(apply, MUON_MOMENTUM * momentum + g, momentum))
    rows, columns = weights.shape[2:]
    ahead = (g + MUON_MOMENTUM * momentum).reshape(-1, rows, columns)
    direction = max(1.0, columns / rows) ** 0.5 * orthogonalize(ahead, dtype).to(weights.dtype)
    step = lr * (direction.view(weights.shape) + config.weight_decay * weights)
    weights.sub_(torch.where(apply, step, 0.0))
    if shadow is not None:
        shadow.copy_(weights)
