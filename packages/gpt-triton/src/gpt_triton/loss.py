"""The loss of a micro-batch, its gradient, and log-probabilities alone.

    loss = sum over targets of -log p(target) / targets of the whole step

Weighting by the step's targets makes the gradient independent of how the step is cut into micro-batches.
Shapes: B rows, T positions, L blocks, N positions that are scored.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.model import Inputs, Parameters, Plan, hidden_states, hidden_states_bwd, hidden_states_fwd


def add_gradients(
    params: Parameters,
    sums: Parameters,
    inputs: Inputs,
    plan: Plan,
    weight: Float[Tensor, ""],
    keys: Int[Tensor, "L 4 3"] | None = None,
) -> Float[Tensor, ""]:
    """A micro-batch's share of the loss; its share of the gradient is added to ``sums``.

    Args:
        params: Matrices in ``plan.dtype``, vectors in float32.
        sums: Gradients so far, changed in place.
        weight: One over the number of targets in the whole step, so that shares add up to the mean.
        keys: Dropout keys; ``None`` means no dropout.
    """
    hidden, residuals = hidden_states_fwd(params, inputs, plan, keys)
    nll, d_hidden = plan.ops.linear_cross_entropy(
        hidden, params.wte, inputs.targets.view(-1), plan.vocab_size, weight, sums.wte
    )
    del hidden
    hidden_states_bwd(params, sums, inputs, residuals, d_hidden, plan, keys)
    return nll.sum() * weight


def target_log_probs(
    params: Parameters, inputs: Inputs, plan: Plan, index: Int[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """Log-probability of each target, 0 where ignored; no dropout, no gradient.

    Args:
        params: Matrices in ``plan.dtype``, vectors in float32.
        index: Positions to score, counted through all rows; ``None`` means all of them.
    """
    hidden, targets = hidden_states(params, inputs, plan), inputs.targets.view(-1)
    if index is not None:
        hidden, targets = hidden[index], targets[index]
    return -plan.ops.linear_nll(hidden, params.wte, targets, plan.vocab_size)
