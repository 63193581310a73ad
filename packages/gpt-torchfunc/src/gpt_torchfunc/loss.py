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
import torch.nn.functional as F
from gpt_data.batch import IGNORE
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.func import vjp

from gpt_torchfunc.gathering import sum_by_index
from gpt_torchfunc.model import (
    Inputs,
    Parameters,
    Plan,
    embed,
    hidden_states,
    positions,
    statistics_dtype,
    trunk,
)


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
    x = embed(params, inputs, plan)
    hidden, pull_back = vjp(lambda p, x: trunk(p, x, inputs, plan, keys), params, x)  # type: ignore[misc]
    loss, d_hidden, d_wte = head_loss_and_gradients(
        hidden, params.wte, inputs.targets.flatten(), plan, weight
    )
    gradients, d_x = pull_back(d_hidden)
    d_embedding, d_wpe = embed_gradients(params, inputs, d_x)
    # the embedding is used at both ends of the model
    return loss, gradients._replace(wte=d_embedding + d_wte, wpe=d_wpe)


def embed_gradients(
    params: Parameters, inputs: Inputs, d_x: Float[Tensor, "M D"]
) -> tuple[Float[Tensor, "V D"], Float[Tensor, "C D"]]:
    """Gradients of both tables by that of ``embed``'s result.

    Args:
        params: For the tables' sizes and type.
        inputs: Token ids and where their documents start.
        d_x: Gradient of the sum of the embeddings.
    """
    wide, context = d_x.to(params.wpe.dtype), inputs.tokens.shape[1]
    d_wte = sum_by_index(wide, inputs.tokens.flatten(), len(params.wte))
    if inputs.segment_starts is not None:
        return d_wte, sum_by_index(wide, positions(inputs).flatten(), len(params.wpe))
    d_rows = wide.unflatten(0, inputs.tokens.shape).sum(0)
    return d_wte, F.pad(d_rows, (0, 0, 0, len(params.wpe) - context))


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
    head = wte.to(plan.dtype)
    loss, d_wte = torch.zeros_like(weight), torch.zeros_like(wte)
    d_hidden = []
    for h, t in zip(*_chunks(hidden, targets, len(head), plan), strict=True):
        z = chunk_logits(h, head, plan.vocab_size)
        nll, log_sum = negative_log_likelihood(z, t)
        d_z = _d_logits(z, log_sum, t, weight).to(h.dtype)
        loss, d_wte = loss + nll.sum() * weight, d_wte + d_z.T @ h
        d_hidden.append(d_z @ head)
    return loss, torch.cat(d_hidden), d_wte


def token_nll(
    hidden: Float[Tensor, "m D"], head: Float[Tensor, "V D"], targets: Int[Tensor, " m"], vocab_size: int
) -> Float[Tensor, " m"]:
    """Negative log-likelihood of each target, 0 where there is none; float32 from the logits on.

    Args:
        hidden: What the head sees.
        head: The head's weight, in the precision of ``hidden``.
        targets: Token ids, or ``IGNORE``.
        vocab_size: Columns from here on are padding and get no probability.
    """
    return negative_log_likelihood(chunk_logits(hidden, head, vocab_size), targets)[0]


def chunk_logits(
    hidden: Float[Tensor, "m D"], head: Float[Tensor, "V D"], vocab_size: int
) -> Float[Tensor, "m V"]:
    """A chunk's logits, rounded to the type of ``hidden``, in float32; padding columns are minus infinity."""
    z = (hidden @ head.T).to(statistics_dtype(hidden.dtype))
    if vocab_size == len(head):
        return z
    return z.masked_fill(_column_ids(z) >= vocab_size, float("-inf"))


def negative_log_likelihood(
    z: Float[Tensor, "m V"], targets: Int[Tensor, " m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Of each target, 0 where it is ``IGNORE``; and the log-sum-exp of each row.

    The target's logit is picked by comparison, not by a gather, so that it fuses with the sum.
    """
    peak = z.amax(-1, keepdim=True)
    log_sum = peak[:, 0] + (z - peak).exp().sum(-1).log()
    target_logit = torch.where(_column_ids(z) == targets[:, None], z, 0.0).sum(-1)
    return torch.where(targets == IGNORE, 0.0, log_sum - target_logit), log_sum


def _d_logits(
    z: Float[Tensor, "m V"],
    log_sum: Float[Tensor, " m"],
    targets: Int[Tensor, " m"],
    weight: Float[Tensor, ""],
) -> Float[Tensor, "m V"]:
    """``weight (softmax(z) - onehot(target))``, and 0 in rows without a target."""
    one_hot = (_column_ids(z) == targets[:, None]).to(z.dtype)
    factor = torch.where(targets == IGNORE, 0.0, weight).to(z.dtype)
    return ((z - log_sum[:, None]).exp() - one_hot) * factor[:, None]


def _column_ids(z: Float[Tensor, "m V"]) -> Int[Tensor, " V"]:
    return torch.arange(z.shape[1], device=z.device)


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
    hidden, targets = hidden_states(params, inputs, plan), inputs.targets.flatten()
    if index is not None:
        hidden, targets = hidden[index], targets[index]
    head = params.wte.to(plan.dtype)
    chunks = zip(*_chunks(hidden, targets, len(head), plan), strict=True)
    return -torch.cat([token_nll(h, head, t, plan.vocab_size) for h, t in chunks])


def _chunks(
    hidden: Tensor, targets: Tensor, width: int, plan: Plan
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Hidden states and targets, cut so that a chunk's logits number at most ``plan.chunk``."""
    rows = max(1, plan.chunk // width)
    return hidden.split(rows), targets.split(rows)
