"""The loss of a micro-batch, its gradient, and the same loss alone.

    loss = sum over targets of -log p(target) / targets of the whole step

Weighting by the step's targets makes the gradient independent of how the step is cut into micro-batches.
Shapes: B rows, T positions, M = B*T, N of them that are scored.
"""

from __future__ import annotations

from types import ModuleType

from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.buffers import Params
from gpt_triton.keeping import Keep
from gpt_triton.model import Inputs, backward, forward


def loss_and_gradients(
    ops: ModuleType,
    params: Params,
    d_params: Params,
    inputs: Inputs,
    targets: Int[Tensor, "B T"],
    scale: Float[Tensor, ""],
    *,
    n_head: int,
    vocab_size: int,
    rate: float,
    keep: Keep,
) -> Float[Tensor, ""]:
    """A micro-batch's share of the step's loss; its share of the gradients is added in place.

    Args:
        d_params: Gradients, added to.
        scale: One over the number of targets in the whole step.
    """
    hidden, residuals = forward(ops, params, inputs, n_head, rate, keep)
    nll, d_hidden = ops.linear_cross_entropy(
        hidden, params.wte, targets.view(-1), vocab_size, scale, d_params.wte
    )
    del hidden
    backward(ops, params, d_params, inputs, residuals, d_hidden, n_head, rate)
    return nll.sum() * scale


def token_losses(
    ops: ModuleType,
    params: Params,
    inputs: Inputs,
    targets: Int[Tensor, "B T"],
    *,
    n_head: int,
    vocab_size: int,
    index: Int[Tensor, " N"] | None = None,
) -> Float[Tensor, " N"]:
    """Negative log-likelihood of every target without dropout, 0 where ignored.

    Args:
        index: Positions to score, counted through all rows; ``None`` means all of them.
    """
    hidden, _ = forward(ops, params, inputs, n_head)
    flat = targets.view(-1)
    if index is not None:
        hidden, flat = hidden[index], flat[index]
    return ops.linear_nll(hidden, params.wte, flat, vocab_size)
