"""Global norm and AdamW over flat buffers.

    g   = grad min(1, clip / norm)
    m  += (1 - b1) (g - m),   v += (1 - b2) (g^2 - v)
    w  -= lr (m / c1 / (sqrt(v / c2) + eps) + decay w),   c_i = 1 - b_i^t

A step whose norm is not finite or exceeds ``skip_above`` changes nothing: its rates are zero. That is
decided on the device, so that nothing waits for the host. Shapes: P elements of a flat buffer.

References:
    Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
"""

from __future__ import annotations

import torch
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Float
from torch import Tensor

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
    parameters: Float[Tensor, " P"],
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
        parameters: Master weights, changed.
        gradients: Unclipped gradients.
        first: First moment, changed.
        second: Second moment, changed.
        shadow: Copy of the weights in bfloat16, rewritten.
        scalars: On the device: learning rate, ``1 - b1^t``, ``1 - b2^t``, ``skip_above``.
    """
    learning_rate, correction1, correction2, skip_above = scalars
    apply = (norm[0].isfinite() & (norm[0] <= skip_above)).to(norm.dtype)
    clip = (config.clip_norm / norm[0]).clamp(max=1.0) if config.clip_norm > 0 else torch.ones_like(apply)
    rate = learning_rate * apply
    # a skipped step may hold NaN: replaced, not multiplied, by zero
    g = torch.where(apply > 0, gradients * clip, 0.0)
    first.lerp_(g, (1.0 - config.beta1) * apply)
    second.lerp_(g.square(), (1.0 - config.beta2) * apply)
    parameters[:decay_count].mul_(1.0 - rate * config.weight_decay)
    parameters.sub_(rate * (first / correction1) / ((second / correction2).sqrt() + config.epsilon))
    if shadow is not None:
        shadow.copy_(parameters)
