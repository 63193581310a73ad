"""AdamW with clipping by global norm, over flat buffers.

    s = min(1, clip / |g|)
    m = b1 m + (1 - b1) s g,     v = b2 v + (1 - b2) (s g)^2
    p = p - lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + decay p)

The arithmetic is an op of either set, in place; this file says what it works on. Decay acts on matrices and
embeddings only: the first ``decay_count`` elements. Whether a step counts is decided on the device, so
nothing is read back to the host.

References:
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from gpt_triton.model import Parameters
from gpt_triton.ops import Ops


class AdamWState(NamedTuple):
    """Running means of the gradient and of its square, float32."""

    first: Parameters
    second: Parameters


STATE_NAMES = AdamWState._fields
"""Names of the state's trees, where others store them."""


class Outcome(NamedTuple):
    """The gradient's norm before clipping, and whether the weights took the step."""

    grad_norm: Float[Tensor, ""]
    updated: Bool[Tensor, ""]


def step_scalars(
    config: OptimizerConfig, lr: float, step: int, skip_above: float
) -> Float32[np.ndarray, " 4"]:
    """What changes from step to step: lr, ``1 - beta1^t``, ``1 - beta2^t`` and ``skip_above``, in one array.

    Args:
        step: Steps already taken, from 0.
    """
    corrections = [1.0 - beta ** (step + 1) for beta in (config.beta1, config.beta2)]
    return np.array([lr, *corrections, skip_above], np.float32)


def adamw_update(
    params: Parameters,
    gradients: Parameters,
    state: AdamWState,
    config: OptimizerConfig,
    scalars: Float[Tensor, " 4"],
    shadow: Parameters,
    ops: Ops,
    norm: Float[Tensor, " 1"] | None = None,
) -> Outcome:
    """One step in place; everything stays as it was if the norm is not finite or above ``skip_above``.

    Args:
        params: Float32 parameters, changed.
        gradients: Of the mean loss, unclipped.
        state: Moments, changed.
        scalars: As ``step_scalars`` makes them.
        shadow: What products read, rewritten unless it is ``params`` itself.
        norm: Of the whole gradient, where ``gradients`` are a share of it.
    """
    norm = ops.global_norm(gradients.flat) if norm is None else norm
    ops.adamw_update(
        params.flat,
        gradients.flat,
        state.first.flat,
        state.second.flat,
        None if shadow is params else shadow.flat,
        params.decay_count,
        norm,
        scalars,
        config,
    )
    return Outcome(norm[0], norm[0].isfinite() & (norm[0] <= scalars[3]))
