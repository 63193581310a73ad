"""One optimizer step on a training state: a sum of gradients over micro-batches, and one update.

Both are a fixed sequence of launches on fixed addresses, so that a CUDA graph can hold either.

Shapes: L blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.loss import add_gradients
from gpt_triton.model import Inputs, Parameters, Plan
from gpt_triton.optimizer import OptimizerState, optimizer_update


class TrainingState(NamedTuple):
    """What a step changes; ``shadow`` is what products read, and ``params`` itself in float32."""

    params: Parameters
    optimizer: OptimizerState
    shadow: Parameters


class Sums(NamedTuple):
    """Loss and gradient over the micro-batches so far, float32."""

    loss: Float[Tensor, ""]
    gradients: Parameters


def accumulate(
    params: Parameters,
    sums: Sums,
    inputs: Inputs,
    weight: Float[Tensor, ""],
    keys: Int[Tensor, "L 4 3"] | None,
    plan: Plan,
) -> None:
    """Add one micro-batch's share to ``sums``.

    Args:
        params: The state's shadow.
        sums: Loss and gradient so far, changed in place.
        weight: One over the number of targets in the whole step.
        keys: Dropout keys, or ``None``.
    """
    sums.loss.add_(add_gradients(params, sums.gradients, inputs, plan, weight, keys))


def finish(
    state: TrainingState,
    sums: Sums,
    scalars: Float[Tensor, " 4"],
    config: OptimizerConfig,
    plan: Plan,
    norm: Float[Tensor, " 1"] | None = None,
) -> Float[Tensor, " 3"]:
    """Clip and update by the summed gradient.

    Args:
        state: Parameters, optimizer and shadow, changed in place.
        sums: Loss and gradient of the whole step.
        scalars: As ``step_scalars`` makes them.
        norm: Of the whole gradient, where state and sums are a share of all.

    Returns:
        Loss, gradient norm, and 1 if the weights were updated.
    """
    params, optimizer, shadow = state
    outcome = optimizer_update(params, sums.gradients, optimizer, config, scalars, shadow, plan.ops, norm)
    return torch.stack([sums.loss, outcome.grad_norm, outcome.updated.to(sums.loss.dtype)])
