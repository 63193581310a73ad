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
from gpt_torchfunc.optimizer import OptimizerState, StepScalars, optimizer_update
from gpt_torchfunc.tree import named_leaves


class TrainingState(NamedTuple):
    """What a step changes."""

    params: Parameters
    optimizer: OptimizerState


class Sums(NamedTuple):
    """Loss and gradient over the micro-batches so far, float32."""

    loss: Float[Tensor, ""]
    gradients: Parameters


def accumulate(
    params: Parameters,
    sums: Sums,
    inputs: Inputs,
    weight: Float[Tensor, ""],
    keys: Int64[Tensor, "L 4 3"] | None,
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
    dtype: torch.dtype = torch.float32,
    norm: Float[Tensor, ""] | None = None,
) -> Float[Tensor, " 3"]:
    """Clip and update by the summed gradient.

    Args:
        state: Parameters and the optimizer's state, changed in place.
        sums: Loss and gradient of the whole step.
        dtype: Of the products that the optimizer makes.
        norm: Of the whole gradient, where state and sums are shares of all leaves.

    Returns:
        Loss, gradient norm, and 1 if the weights were updated.
    """
    params, optimizer, outcome = optimizer_update(
        state.params, sums.gradients, state.optimizer, config, scalars, dtype, norm
    )
    new = {"params": named_leaves(params), **optimizer}
    for tree, buffers in {"params": named_leaves(state.params), **state.optimizer}.items():
        for name, buffer in buffers.items():
            buffer.copy_(new[tree][name])
    return torch.stack([sums.loss, outcome.grad_norm, outcome.updated.to(sums.loss.dtype)])
