"""AdamW, or Muon for the blocks' matrices, with clipping by global norm, as pure functions of trees.

    s = min(1, clip / |g|)

AdamW, with decay on matrices and embeddings only:

    m = b1 m + (1 - b1) s g,     v = b2 v + (1 - b2) (s g)^2
    p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)

Muon, whose learning rate is ``muon_lr_factor`` times as high:

    m = mu m + s g,     O = orthogonalize(s g + mu m)
    p = p - lr_muon (sqrt(max(1, columns / rows)) O + decay p)

Each leaf has one rule, told by what the state keeps of it. Whether a step counts is decided on the device,
so nothing is read back to the host. Shapes: L blocks, N matrices, R rows, C columns.

References:
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Bool, Float
from torch import Tensor

from gpt_torchfunc.model import Parameters
from gpt_torchfunc.tree import LEAF_NAMES, Leaves, from_leaves, leaves, named_leaves

BLOCK_MATRICES = frozenset({"qkv_weight", "out_weight", "up_weight", "down_weight"})
"""Leaves that Muon may take: each is a matrix, or one of each block."""
MATRICES = BLOCK_MATRICES | {"wte", "wpe"}
"""Leaves that decay: those that are 2-D before the blocks are stacked."""

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS, NEWTON_SCHULZ = 5, (3.4445, -4.7750, 2.0315)
NORM_FLOOR = 1e-7
"""Added to a matrix's norm, so that one of zeros stays so."""

OptimizerState = dict[str, Leaves]
"""Float32 leaves by the name of what is kept: ``first`` and ``second`` (AdamW), ``momentum`` (Muon)."""


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


def optimizer_init(params: Parameters, config: OptimizerConfig) -> OptimizerState:
    """Zeros for every leaf, as its rule wants them."""
    muon = BLOCK_MATRICES if config.optimizer == "muon" else frozenset()
    rest = frozenset(LEAF_NAMES) - muon
    kept = {"first": rest, "second": rest, "momentum": muon}
    leaves = named_leaves(params)
    return {
        tree: {name: torch.zeros_like(leaf) for name, leaf in leaves.items() if name in names}
        for tree, names in kept.items()
        if names
    }


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


def optimizer_update(
    params: Parameters,
    gradients: Parameters,
    state: OptimizerState,
    config: OptimizerConfig,
    scalars: StepScalars,
    dtype: torch.dtype = torch.float32,
    norm: Float[Tensor, ""] | None = None,
) -> tuple[Parameters, OptimizerState, Outcome]:
    """One step; everything stays as it was if the norm is not finite or above ``skip_above``.

    Args:
        params: Float32 parameters.
        gradients: Of the mean loss, unclipped.
        dtype: Of the products in ``orthogonalize``.
        norm: Of the whole gradient, where the trees are shares of all leaves.
    """
    norm = global_norm(gradients) if norm is None else norm
    updated = torch.isfinite(norm) & (norm <= scalars.skip_above)
    scale = torch.clamp(config.clip_norm / norm, max=1.0) if config.clip_norm else torch.ones_like(norm)

    slopes = named_leaves(gradients)
    new_leaves: Leaves = {}
    new_state: OptimizerState = {tree: {} for tree in state}
    for name, p in named_leaves(params).items():
        kept = {tree: values[name] for tree, values in state.items() if name in values}
        after, kept_after = _update_leaf(name, p, slopes[name] * scale, kept, config, scalars, dtype)
        new_leaves[name] = torch.where(updated, after, p)
        for tree, value in kept_after.items():
            new_state[tree][name] = torch.where(updated, value, kept[tree])
    return from_leaves(new_leaves.values()), new_state, Outcome(norm, updated)


def _update_leaf(
    name: str,
    p: Tensor,
    g: Tensor,
    kept: Leaves,
    config: OptimizerConfig,
    scalars: StepScalars,
    dtype: torch.dtype,
) -> tuple[Tensor, Leaves]:
    """One leaf by its rule, its gradient clipped already; and what the rule keeps of it."""
    lr = scalars.lr
    if "momentum" in kept:
        lr = lr * config.muon_lr_factor
        direction, kept = _muon(g, **kept, parts=3 if name == "qkv_weight" else 1, dtype=dtype)
    else:
        direction, kept = _adamw(g, **kept, config=config, scalars=scalars)
    if name in MATRICES:
        direction = direction + config.weight_decay * p
    return p - lr * direction, kept


def _adamw(
    g: Tensor, first: Tensor, second: Tensor, config: OptimizerConfig, scalars: StepScalars
) -> tuple[Tensor, Leaves]:
    """AdamW's direction, and its moments."""
    first = config.beta1 * first + (1.0 - config.beta1) * g
    second = config.beta2 * second + (1.0 - config.beta2) * g.square()
    direction = (first / scalars.correction1) / ((second / scalars.correction2).sqrt() + config.epsilon)
    return direction, {"first": first, "second": second}


def _muon(
    g: Float[Tensor, "L R C"], momentum: Float[Tensor, "L R C"], parts: int, dtype: torch.dtype
) -> tuple[Tensor, Leaves]:
    """Muon's direction, and its momentum (Nesterov's).

    Args:
        parts: Matrices that lie side by side: each is orthogonalized for itself.
    """
    momentum = MUON_MOMENTUM * momentum + g
    ahead = g + MUON_MOMENTUM * momentum
    matrices = torch.cat(ahead.chunk(parts, dim=-1))  # [parts * L, R, C / parts]
    rows, columns = matrices.shape[-2:]
    direction = max(1.0, columns / rows) ** 0.5 * orthogonalize(matrices, dtype)
    return torch.cat(direction.chunk(parts), dim=-1), {"momentum": momentum}


def orthogonalize(x: Float[Tensor, "N R C"], dtype: torch.dtype) -> Float[Tensor, "N R C"]:
    """About ``U V^T`` of each matrix ``U S V^T``.

    Newton-Schulz: ``X <- a X + (b X X^T + c (X X^T)^2) X`` on ``X / |X|`` takes each singular value by the
    odd polynomial ``a s + b s^3 + c s^5``, whose slope at 0 is 3.4: after five steps those that were above
    a 500th lie between 0.68 and 1.21.

    Args:
        dtype: Of the products.
    """
    a, b, c = NEWTON_SCHULZ
    across = x.shape[-2] > x.shape[-1]  # the products are of the shorter side
    y = (x / (x.square().sum((-2, -1), keepdim=True).sqrt() + NORM_FLOOR)).to(dtype)
    y = y.mT if across else y
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = y @ y.mT
        # what is added to a product is not rounded before
        y = torch.baddbmm(y, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
    return (y.mT if across else y).to(x.dtype)
