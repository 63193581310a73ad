"""Mean negative log-likelihood over chunks of tokens, and its gradient.

    nll_m = log sum_v exp(z_mv) - z_m,target(m),    z = h W^T

The logits of a whole micro-batch, [M, V], would be the largest tensor of a step. The loss is the last
thing that is computed, so each chunk's gradient can be taken as soon as its value is: the chunk's
logits are dropped before the next one begins, in forward and in backward. The trunk's own
``torch.func.vjp`` then continues from the gradient of the hidden states. Both are plain functions in
one graph, which ``torch.compile`` sees whole.

Shapes: M tokens, N of them that are scored, m tokens of a chunk, D width, V vocabulary (padded), B rows,
T positions.
"""

from __future__ import annotations

import torch
from gpt_data.batch import IGNORE
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.func import grad_and_value, vjp

from gpt_torchfunc.model import Inputs, Parameters, Plan, hidden_states, statistics_dtype


def loss_and_gradients(
    params: Parameters,
    inputs: Inputs,
    plan: Plan,
    weight: Float[Tensor, ""],
    keys: Int64[Tensor, "L 4 2"] | None = None,
) -> tuple[Float[Tensor, ""], Parameters]:
    """A micro-batch's share of the loss, and of its gradient.

    Args:
        params: Float32 parameters.
        inputs: The micro-batch.
        plan: Precision, attention and sizes.
        weight: One over the number of targets in the whole step, so that shares add up to the mean.
        keys: Dropout keys; ``None`` means no dropout.
    """
    hidden, pull_back = vjp(lambda p: hidden_states(p, inputs, plan, keys), params)  # type: ignore[misc]
    loss, d_hidden, d_wte = head_loss_and_gradients(
        hidden.flatten(0, 1), params.wte, inputs.targets.flatten(), plan, weight
    )
    (gradients,) = pull_back(d_hidden.view_as(hidden))
    # the embedding is used at both ends of the model
    return loss, gradients._replace(wte=gradients.wte + d_wte)


def head_loss_and_gradients(
    hidden: Float[Tensor, "M D"],
    wte: Float[Tensor, "V D"],
    targets: Int[Tensor, " M"],
    plan: Plan,
    weight: Float[Tensor, ""],
) -> tuple[Float[Tensor, ""], Float[Tensor, "M D"], Float[Tensor, "V D"]]:
    """Weighted sum of negative log-likelihoods, its gradient by ``hidden`` and by ``wte``.

    Args:
        hidden: What the head sees.
        wte: The head's float32 weight.
        targets: Token ids, or ``IGNORE``.
        plan: Precision, size of the chunks, and the vocabulary before padding.
        weight: Factor of the sum.

    Returns:
        The loss, ``d_hidden`` in the type of ``hidden``, and ``d_wte`` summed over chunks in float32.
    """
    chunk_gradient = grad_and_value(
        lambda h, w, t: (token_nll(h, w, t, plan.vocab_size) * weight).sum(), argnums=(0, 1)
    )
    head = wte.to(plan.dtype)
    loss, d_wte = torch.zeros_like(weight), torch.zeros_like(wte)
    d_hidden = []
    for h, t in zip(*_chunks(hidden, targets, plan), strict=True):
        (d_h, d_w), nll = chunk_gradient(h, head, t)
        loss, d_wte = loss + nll, d_wte + d_w
        d_hidden.append(d_h)
    return loss, torch.cat(d_hidden), d_wte


def token_nll(
    hidden: Float[Tensor, "m D"], head: Float[Tensor, "V D"], targets: Int[Tensor, " m"], vocab_size: int
) -> Float[Tensor, " m"]:
    """Negative log-likelihood of each target, 0 where there is none; float32 from the logits on.

    The target's logit is picked by comparison, not by a gather: the derivative of a comparison is
    another one, fused with the softmax, where a gather's would be a scatter of its own.

    Args:
        hidden: What the head sees.
        head: The head's weight, in the precision of ``hidden``.
        targets: Token ids, or ``IGNORE``.
        vocab_size: Columns from here on are padding and get no probability.
    """
    logits = (hidden @ head.T).to(statistics_dtype(hidden.dtype))  # [m, V]
    ids = torch.arange(logits.shape[1], device=logits.device)
    if vocab_size < logits.shape[1]:
        logits = logits.masked_fill(ids >= vocab_size, float("-inf"))
    target_logit = torch.where(ids == targets[:, None], logits, 0.0).sum(-1)  # [m]
    return torch.where(targets == IGNORE, 0.0, torch.logsumexp(logits, -1) - target_logit)


def target_log_probs(
    params: Parameters, inputs: Inputs, plan: Plan, index: Int[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """Log-probability of each target, 0 where ignored; no dropout, no gradient.

    Args:
        params: Float32 parameters.
        inputs: Tokens and targets.
        plan: Precision, attention and sizes.
        index: Positions to score, counted through all rows; ``None`` means all of them.
    """
    hidden, targets = hidden_states(params, inputs, plan).flatten(0, 1), inputs.targets.flatten()
    if index is not None:
        hidden, targets = hidden[index], targets[index]
    head = params.wte.to(plan.dtype)
    chunks = zip(*_chunks(hidden, targets, plan), strict=True)
    return -torch.cat([token_nll(h, head, t, plan.vocab_size) for h, t in chunks])


def _chunks(hidden: Tensor, targets: Tensor, plan: Plan) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Hidden states and targets, cut so that a chunk's logits number at most ``plan.chunk``."""
    rows = max(1, plan.chunk // plan.vocab_size)
    return hidden.split(rows), targets.split(rows)
