"""AdamW, or Muon for the blocks' matrices, with clipping by global norm, over flat buffers.

    s = min(1, clip / |g|)

AdamW, element by element, with decay on matrices and embeddings only, the first ``decay_count`` elements:

    m = b1 m + (1 - b1) s g,     v = b2 v + (1 - b2) (s g)^2
    p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)

Muon, whose learning rate is ``muon_lr_factor`` times as high, matrix by matrix, of the first ``muon_count``
elements.

    m = mu m + s g,     O = orthogonalize(s g + mu m)
    p = p - lr_muon (sqrt(max(1, columns / rows)) O + decay p)

The arithmetic is ops of either set, in place; this file says what they work on. Whether a step counts is
decided on the device, so nothing is read back to the host. Shapes: L blocks, K matrices side by side, R rows,
C columns.

References:
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
    Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from gpt_triton.model import Parameters, Stretch
from gpt_triton.ops import Ops

BLOCK_MATRICES = ("qkv_weight", "out_weight", "up_weight", "down_weight")
"""Fields that Muon may take."""

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ_STEPS, NEWTON_SCHULZ = 5, (3.4445, -4.7750, 2.0315)
NORM_FLOOR = 1e-7
"""Added to a matrix's norm, so that one of zeros stays so."""

OptimizerState = dict[str, Stretch]
"""Float32 buffers by the name of what is kept: ``first`` and ``second`` (AdamW), ``momentum`` (Muon)."""


class Outcome(NamedTuple):
    """The gradient's norm before clipping, and whether the weights took the step."""

    grad_norm: Float[Tensor, ""]
    updated: Bool[Tensor, ""]


def optimizer_init(params: Parameters, config: OptimizerConfig) -> OptimizerState:
    """Zeros for every element, as its rule wants them."""
    size, muon = params.flat.numel(), params.muon_count if config.optimizer == "muon" else 0
    bounds = {"first": (muon, size), "second": (muon, size), "momentum": (0, muon)}
    return {
        tree: Stretch(torch.zeros_like(params.flat[begin:end]), begin)
        for tree, (begin, end) in bounds.items()
        if begin < end
    }


def step_scalars(
    config: OptimizerConfig, lr: float, step: int, skip_above: float
) -> Float32[np.ndarray, " 4"]:
    """What changes from step to step: lr, ``1 - beta1^t``, ``1 - beta2^t`` and ``skip_above``, in one array.

    Args:
        step: Steps already taken, from 0.
    """
    corrections = [1.0 - beta ** (step + 1) for beta in (config.beta1, config.beta2)]
    return np.array([lr, *corrections, skip_above], np.float32)


def optimizer_update(
    params: Parameters,
    gradients: Parameters,
    state: OptimizerState,
    config: OptimizerConfig,
    scalars: Float[Tensor, " 4"],
    shadow: Parameters,
    ops: Ops,
    norm: Float[Tensor, " 1"] | None = None,
) -> Outcome:
    """One step in place; everything stays as it was if the norm is not finite or above ``skip_above``.

    Args:
        params: Float32 parameters, changed.
        gradients: Of the mean loss, unclipped; Muon uses its own up.
        state: Changed; of one rule alone, the other's elements stay.
        scalars: As ``step_scalars`` makes them.
        shadow: What products read, rewritten unless it is ``params`` itself.
        norm: Of the whole gradient, where ``gradients`` are a share of it.
    """
    norm = ops.global_norm(gradients.flat) if norm is None else norm
    if "first" in state:
        (first, start), (second, _) = state["first"], state["second"]
        narrow = None if shadow is params else shadow.flat[start:]
        given = params.flat[start:], gradients.flat[start:], first, second, narrow
        ops.adamw_update(*given, params.decay_count - start, norm, scalars, config)
    if "momentum" in state and params.blocks:
        for field in BLOCK_MATRICES:
            w, g, m = (
                matrix_stack(flat, field, params)
                for flat in (params.flat, gradients.flat, state["momentum"].values)
            )
            copy = None if shadow is params else matrix_stack(shadow.flat, field, params)
            ops.muon_update(w, g, m, copy, norm, scalars, config, shadow.flat.dtype)
    skip_above = scalars[3]
    return Outcome(norm[0], norm[0].isfinite() & (norm[0] <= skip_above))


def matrix_stack(flat: Float[Tensor, " n"], field: str, params: Parameters) -> Float[Tensor, "L K R C"]:
    """View of one of the blocks' matrices, of all blocks at once; queries, keys and values are K = 3.

    Args:
        flat: A buffer that begins as that of ``params`` does.
    """
    matrix, parts = getattr(params.blocks[0], field), 3 if field == "qkv_weight" else 1
    start, (rows, width) = matrix.storage_offset() - params.flat.storage_offset(), matrix.shape
    in_blocks = flat[: params.muon_count].view(len(params.blocks), -1)
    stack = in_blocks[:, start : start + matrix.numel()].view(-1, rows, parts, width // parts)
    return stack.transpose(1, 2)
