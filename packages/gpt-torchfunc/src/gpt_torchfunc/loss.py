"""Mean negative log-likelihood over chunks of tokens, and its gradient.

    nll_m = log sum_v exp(z_mv) - z_m,target(m),    z = h W^T
    d_z   = weight (softmax(z) - onehot(target)),   d_h = d_z W,   d_W = d_z^T h

The logits of a whole micro-batch, [M, Vp], would be the largest tensor of a step. The loss is the last
thing that is computed, so a chunk's gradient can be taken as soon as its value is: the chunk's logits are
dropped before the next one begins, in forward and in backward.

Shapes: M tokens, N of them that are scored, m tokens of a chunk, D width, Vp padded vocabulary, B rows,
T positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from gpt_data.batch import IGNORE
from jaxtyping import Float, Int, Int32
from torch import Tensor

from gpt_torchfunc.attention import statistics_dtype
from gpt_torchfunc.model import Inputs, Parameters, Plan, hidden_states


def head_loss_and_gradients(
    hidden: Float[Tensor, "M D"],
    wte: Float[Tensor, "Vp D"],
    targets: Int[Tensor, " M"],
    plan: Plan,
    weight: Float[Tensor, ""],
    of_chunk: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "M D"], Float[Tensor, "Vp D"]]:
    """Weighted sum of negative log-likelihoods, its gradient by ``hidden`` and by ``wte``.

    Args:
        wte: The head's float32 weight.

    Returns:
        The loss, ``d_hidden`` in the type of ``hidden``, and ``d_wte`` summed over chunks in float32.
    """
    head, of_chunk = wte.to(plan.dtype), of_chunk or chunk_loss_and_gradients
    loss, d_wte, d_hidden = torch.zeros_like(weight), torch.zeros_like(wte), []
    for h, t in zip(*_chunks(hidden, targets, head, plan), strict=True):
        share, d_h, d_head = of_chunk(h, head, t, weight, plan.vocab_size)
        loss, d_wte = loss + share, d_wte.add_(d_head)
        d_hidden.append(d_h)
    return loss, torch.cat(d_hidden), d_wte


def chunk_loss_and_gradients(
    hidden: Float[Tensor, "m D"],
    head: Float[Tensor, "Vp D"],
    targets: Int[Tensor, " m"],
    weight: Float[Tensor, ""],
    vocab_size: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, "m D"], Float[Tensor, "Vp D"]]:
    """A chunk's share of the loss and of both gradients, by the formulas above."""
    z = chunk_logits(hidden, head, vocab_size)
    nll, log_sum = negative_log_likelihood(z, targets)
    d_z = _d_logits(z, log_sum, targets, weight).to(hidden.dtype)
    return nll.sum() * weight, d_z @ head, d_z.T @ hidden


def token_nll(
    hidden: Float[Tensor, "N D"], wte: Float[Tensor, "Vp D"], targets: Int[Tensor, " N"], plan: Plan
) -> Float[Tensor, " N"]:
    """Negative log-likelihood of each target, 0 where there is none, chunk by chunk.

    Args:
        wte: The head's weight, in float32 or the plan's precision.
    """
    head = wte.to(plan.dtype)
    chunks = zip(*_chunks(hidden, targets, head, plan), strict=True)
    logits = ((chunk_logits(h, head, plan.vocab_size), t) for h, t in chunks)
    return torch.cat([negative_log_likelihood(*each)[0] for each in logits])


def chunk_logits(
    hidden: Float[Tensor, "m D"], head: Float[Tensor, "Vp D"], vocab_size: int
) -> Float[Tensor, "m Vp"]:
    """A chunk's logits, rounded to the type of ``hidden``, in float32; padding columns are minus infinity."""
    z = (hidden @ head.T).to(statistics_dtype(hidden.dtype))
    if vocab_size == len(head):
        return z
    return z.masked_fill(_column_ids(z) >= vocab_size, float("-inf"))


def negative_log_likelihood(
    z: Float[Tensor, "m Vp"], targets: Int[Tensor, " m"]
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Of each target, 0 where it is ``IGNORE``; and the log-sum-exp of each row."""
    peak = z.amax(-1)
    log_sum = peak + _exp(z - peak[:, None]).sum(-1).log()
    target_logit = z.gather(1, targets.clamp(min=0).long()[:, None])[:, 0]
    return torch.where(targets == IGNORE, 0.0, log_sum - target_logit), log_sum


def _d_logits(
    z: Float[Tensor, "m Vp"],
    log_sum: Float[Tensor, " m"],
    targets: Int[Tensor, " m"],
    weight: Float[Tensor, ""],
) -> Float[Tensor, "m Vp"]:
    """``weight (softmax(z) - onehot(target))``, and 0 in rows without a target."""
    p = _exp(z - log_sum[:, None])
    factor = torch.where(targets == IGNORE, 0.0, weight).to(z.dtype)
    return torch.where(_column_ids(z) == targets[:, None], p - 1.0, p) * factor[:, None]


def _exp(x: Float[Tensor, "m Vp"]) -> Float[Tensor, "m Vp"]:
    """``e^x`` as a power of two, for which a GPU has an instruction: the loss is bound by those."""
    return torch.exp2(x * math.log2(math.e))


def _column_ids(z: Float[Tensor, "m Vp"]) -> Int32[Tensor, " Vp"]:
    # counted in 64 bits, each comparison would be two
    return torch.arange(z.shape[1], device=z.device, dtype=torch.int32)


def target_log_probs(
    params: Parameters, inputs: Inputs, plan: Plan, index: Int[Tensor, " N"] | None = None
) -> Float[Tensor, " N"]:
    """Log-probability of each target, 0 where ignored; no dropout, no gradient.

    Args:
        params: Float32 parameters.
        index: Positions to score, counted through all rows; ``None`` means all of them.
    """
    hidden, targets = hidden_states(params, inputs, plan), inputs.targets.flatten()
    if index is not None:
        hidden, targets = hidden[index], targets[index]
    return -token_nll(hidden, params.wte, targets, plan)


def _chunks(
    hidden: Tensor, targets: Tensor, head: Tensor, plan: Plan
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Hidden states and targets, cut so that a chunk's logits number at most ``plan.chunk``."""
    rows = max(1, plan.chunk // len(head))
    return hidden.split(rows), targets.split(rows)
