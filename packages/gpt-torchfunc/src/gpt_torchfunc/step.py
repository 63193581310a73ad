"""One optimizer step on a training state: a sum of gradients over micro-batches, and one update.

The arithmetic is pure; only the last line of each function writes the new values into the old buffers, so
that no step needs a second copy of the state.

Shapes: B rows, T positions, L blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Float, Int64
from torch import Tensor

from gpt_torchfunc.gradients import Functions, add_gradients, add_gradients_of_whole
from gpt_torchfunc.model import Inputs, Parameters, Plan
from gpt_torchfunc.optimizer import AdamWState, StepScalars, adamw_update
from gpt_torchfunc.tree import leaves


class TrainingState(NamedTuple):
    """What a step changes."""

    params: Parameters
    moments: AdamWState


class Sums(NamedTuple):
    """Loss and gradient over the micro-batches so far, float32."""

    loss: Float[Tensor, ""]
    gradients: Parameters


def accumulate(
    params: Parameters,
    sums: Sums,
    inputs: Inputs,
    weight: Float[Tensor, ""],
    keys: Int64[Tensor, "L 4 2"] | None,
    plan: Plan,
    run: Functions | None = None,
) -> None:
    """Add one micro-batch's share to ``sums``.

    Args:
        sums: Loss and gradient so far, changed in place.
        weight: One over the number of targets in the whole step.
        keys: Dropout keys, or ``None``.
        run: The compiled pieces; ``None`` where nothing is compiled.
    """
    given = (params, sums.gradients, inputs, plan, weight, keys)
    sums.loss.add_(add_gradients_of_whole(*given) if run is None else add_gradients(*given, run))


def finish(
    state: TrainingState,
    sums: Sums,
    scalars: StepScalars,
    config: OptimizerConfig,
    norm: Float[Tensor, ""] | None = None,
) -> Float[Tensor, " 3"]:
    """Clip and update by the summed gradient.

    Args:
        state: Parameters and moments, changed in place.
        sums: Loss and gradient of the whole step.
        norm: Of the whole gradient, where state and sums are shares of all leaves.

    Returns:
        Loss, gradient norm, and 1 if the weights were updated.
    """
    params, moments, outcome = adamw_update(
        state.params, sums.gradients, state.moments, config, scalars, norm
    )
    for old, new in zip((state.params, *state.moments), (params, *moments), strict=True):
        for buffer, value in zip(leaves(old), leaves(new), strict=True):
            buffer.copy_(value)
    return torch.stack([sums.loss, outcome.grad_norm, outcome.updated.to(sums.loss.dtype)])
