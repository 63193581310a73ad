"""Output head and cross-entropy in one pass over chunks of tokens, so that no [M, V] tensor ever exists.

    z = x W^T,   nll = logsumexp(z) - z[target],   d_z = weight (softmax(z) - onehot(target)),
    d_x = d_z W,   d_W = d_z^T x

The gradient is ready as soon as a chunk's logits are, since the loss is the end of the graph: its
forward and backward are one function. Targets of ``IGNORE`` give no loss and no gradient.
Shapes: M tokens, D width, V vocabulary, Vp padded vocabulary, m tokens of a chunk.
"""

from __future__ import annotations

import torch
from gpt_data.batch import IGNORE
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.reference.layers import widen

LOGITS_IN_FLIGHT = 1 << 21
"""Logits that exist at a time, unless the caller says how many tokens."""


def linear_cross_entropy(
    x: Float[Tensor, "M D"],
    wte: Float[Tensor, "Vp D"],
    targets: Int[Tensor, " M"],
    vocab_size: int,
    weight: Float[Tensor, ""],
    d_wte: Float[Tensor, "Vp D"],
    chunk: int | None = None,
) -> tuple[Float[Tensor, " M"], Float[Tensor, "M D"]]:
    """Negative log-likelihood of every target, and the gradient of ``weight`` times their sum.

    Args:
        wte: Head, tied to the token table; rows past ``vocab_size`` are padding and take no part.
        d_wte: Added to.
        chunk: Tokens handled at once; by default chosen from the shape.

    Returns:
        The losses (0 where ignored), unweighted, and the gradient of ``x``.
    """
    head, d_head = wte[:vocab_size], d_wte[:vocab_size]
    losses, d_x = [], torch.empty_like(x)
    for part in _chunks(x, vocab_size, chunk):
        z, nll = _logits_and_nll(x[part], head, targets[part])
        d_z = torch.softmax(z, 1)
        counted = (targets[part] != IGNORE)[:, None]
        d_z.scatter_add_(1, _index(targets[part]), -torch.ones_like(d_z[:, :1]))
        d_z *= counted * weight
        losses.append(nll)
        d_x[part] = d_z.to(x.dtype) @ head
        d_head.addmm_(d_z.T, x[part].to(d_head.dtype))
    return torch.cat(losses), d_x


def linear_nll(
    x: Float[Tensor, "M D"],
    wte: Float[Tensor, "Vp D"],
    targets: Int[Tensor, " M"],
    vocab_size: int,
    chunk: int | None = None,
) -> Float[Tensor, " M"]:
    """Negative log-likelihood of every target, 0 where ignored.

    Args:
        wte: Head; rows past ``vocab_size`` take no part.
        chunk: Tokens handled at once; by default chosen from the shape.
    """
    parts = _chunks(x, vocab_size, chunk)
    return torch.cat([_logits_and_nll(x[part], wte[:vocab_size], targets[part])[1] for part in parts])


def _chunks(x: Float[Tensor, "M D"], vocab_size: int, chunk: int | None) -> list[slice]:
    rows = chunk or max(1, LOGITS_IN_FLIGHT // vocab_size)
    return [slice(start, start + rows) for start in range(0, x.shape[0], rows)]


def _logits_and_nll(
    x: Float[Tensor, "m D"], head: Float[Tensor, "V D"], targets: Int[Tensor, " m"]
) -> tuple[Float[Tensor, "m V"], Float[Tensor, " m"]]:
    """Logits, widened, and the negative log-likelihood of each target, 0 where ignored."""
    z = widen(x @ head.T)
    nll = z.logsumexp(1) - z.gather(1, _index(targets))[:, 0]
    return z, torch.where(targets == IGNORE, 0.0, nll)


def _index(targets: Int[Tensor, " m"]) -> Int[Tensor, "m 1"]:
    """Columns of the targets; any where ignored."""
    return targets.long().clamp(min=0)[:, None]
