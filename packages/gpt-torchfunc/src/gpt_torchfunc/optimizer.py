"""AdamW with clipping by global norm, as pure functions of trees.

    s = min(1, clip / |g|)
    m = b1 m + (1 - b1) s g,     v = b2 v + (1 - b2) (s g)^2
    p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)

Decay acts on matrices and embeddings only. Whether a step counts is decided on the device, so nothing
is read back to the host.

References:
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Bool, Float
from torch import Tensor

from gpt_torchfunc.model import Parameters
from gpt_torchfunc.tree import LEAF_NAMES, from_leaves, leaves, map_leaves

MATRICES = frozenset({"wte", "wpe", "qkv_weight", "out_weight", "up_weight", "down_weight"})
"""Leaves that decay: those that are 2-D before the blocks are stacked."""


class AdamWState(NamedTuple):
    """Running means of the gradient and of its square, float32."""

    first: Parameters
    second: Parameters


STATE_NAMES = AdamWState._fields
"""Names of the state's trees, where others store them."""


class StepScalars(NamedTuple):
    """What changes from step to step, as tensors, so that no step is compiled again.

    Attributes:
        lr: Learning rate.
        correction1: ``1 - beta1^t``, formed in float64.
        correction2: ``1 - beta2^t``, the same.
        skip_above: Largest gradient norm that still updates the weights.
    """

    lr: Float[Tensor, ""]
    correction1: Float[Tensor, ""]
    correction2: Float[Tensor, ""]
    skip_above: Float[Tensor, ""]


class Outcome(NamedTuple):
    """The gradient's norm before clipping, and whether the weights took the step."""

    grad_norm: Float[Tensor, ""]
    updated: Bool[Tensor, ""]


def adamw_init(params: Parameters) -> AdamWState:
    """Both moments at zero."""
    return AdamWState(map_leaves(torch.zeros_like, params), map_leaves(torch.zeros_like, params))


def step_scalars(config: OptimizerConfig, lr: float, step: int, skip_above: float) -> Float[Tensor, " 4"]:
    """The fields of ``StepScalars`` in one CPU tensor: one copy to the device.

    Args:
        step: Steps already taken, from 0.
    """
    corrections = [1.0 - beta ** (step + 1) for beta in (config.beta1, config.beta2)]
    return torch.tensor([lr, *corrections, skip_above], dtype=torch.float64).float()


def global_norm(gradients: Parameters) -> Float[Tensor, ""]:
    """Root of the sum of all squares."""
    return torch.stack([leaf.square().sum() for leaf in leaves(gradients)]).sum().sqrt()


def adamw_update(
    params: Parameters,
    gradients: Parameters,
    state: AdamWState,
    config: OptimizerConfig,
    scalars: StepScalars,
    norm: Float[Tensor, ""] | None = None,
) -> tuple[Parameters, AdamWState, Outcome]:
    """One step; everything stays as it was if the norm is not finite or above ``skip_above``.

    Args:
        params: Float32 parameters.
        gradients: Of the mean loss, unclipped.
        norm: Of the whole gradient, where the trees are shares of all leaves.
    """
    norm = global_norm(gradients) if norm is None else norm
    updated = torch.isfinite(norm) & (norm <= scalars.skip_above)
    scale = torch.clamp(config.clip_norm / norm, max=1.0) if config.clip_norm else torch.ones_like(norm)

    new = [
        _update_leaf(name, p, g * scale, m, v, config, scalars)
        for name, p, g, m, v in zip(LEAF_NAMES, *map(leaves, (params, gradients, *state)), strict=True)
    ]
    old = list(zip(*map(leaves, (params, *state)), strict=True))
    kept = [
        [torch.where(updated, n, o) for n, o in zip(*pair, strict=True)]
        for pair in zip(new, old, strict=True)
    ]
    new_params, first, second = (from_leaves(column) for column in zip(*kept, strict=True))
    return new_params, AdamWState(first, second), Outcome(norm, updated)


def _update_leaf(
    name: str, p: Tensor, g: Tensor, m: Tensor, v: Tensor, config: OptimizerConfig, scalars: StepScalars
) -> tuple[Tensor, Tensor, Tensor]:
    """AdamW on one tensor, whose gradient is clipped already."""
    m = config.beta1 * m + (1.0 - config.beta1) * g
    v = config.beta2 * v + (1.0 - config.beta2) * g.square()
    direction = (m / scalars.correction1) / ((v / scalars.correction2).sqrt() + config.epsilon)
    if name in MATRICES:
        direction = direction + config.weight_decay * p
    return p - scalars.lr * direction, m, v
