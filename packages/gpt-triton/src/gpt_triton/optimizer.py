"""AdamW after clipping by global norm, over flat buffers: its state, its beginning and its update.

The arithmetic is an op (``adamw_update``), in place; this file says what it works on. Shapes: P elements.

References:
    Loshchilov and Hutter 2019, "Decoupled weight decay regularization", algorithm 2.
"""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Float, Float32
from torch import Tensor


class AdamWState(NamedTuple):
    """The two moments, float32, laid out like the parameters."""

    first: Float[Tensor, " P"]
    second: Float[Tensor, " P"]


def adamw_init(parameters: Float[Tensor, " P"]) -> AdamWState:
    """Moments of zero."""
    return AdamWState(torch.zeros_like(parameters), torch.zeros_like(parameters))


def adamw_hyper(
    config: OptimizerConfig, lr: float, step: int, skip_above: float = float("inf")
) -> Float32[np.ndarray, " 4"]:
    """The numbers of one step that change from step to step, as ``adamw_update`` reads them.

    Args:
        step: Optimizer steps already taken, from 0.
    """
    t = step + 1
    return np.array([lr, 1.0 - config.beta1**t, 1.0 - config.beta2**t, skip_above], np.float32)


def adamw_step(
    ops: ModuleType,
    parameters: Float[Tensor, " P"],
    gradients: Float[Tensor, " P"],
    state: AdamWState,
    shadow: Float[Tensor, " P"] | None,
    hyper: Float[Tensor, " 4"],
    config: OptimizerConfig,
    decay_count: int,
) -> Float[Tensor, " 1"]:
    """One step in place; returns the global norm of the gradients before clipping.

    Args:
        parameters: Master weights, changed unless the norm is not finite or too large.
        state: Moments, changed likewise.
        shadow: The weights in bfloat16, rewritten; ``None`` in float32.
    """
    norm: Float[Tensor, " 1"] = ops.global_norm(gradients)
    ops.adamw_update(
        parameters, gradients, state.first, state.second, shadow, decay_count, norm, hyper, config
    )
    return norm
