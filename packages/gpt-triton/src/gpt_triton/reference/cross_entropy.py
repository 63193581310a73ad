"""Output head and cross-entropy in one pass over chunks of tokens, so that no [M, V] tensor ever exists.

    z = x W^T,   nll = logsumexp(z) - z[target],   d_z = weight (softmax(z) - onehot(target)),
    d_x = d_z W,   d_W = d_z^T x

The gradient is ready as soon as a chunk's logits are, since the loss is the end of the graph: its
forward and backward are one function. Targets of ``IGNORE`` give no loss and no gradient.
Shapes: M tokens, D width, V vocabulary, Vp padded vocabulary, c tokens of a chunk.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.reference.tiles import accumulation_dtype, rows_per_tile


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
    nll = x.new_empty(x.shape[0], dtype=accumulation_dtype(x))
    d_x = torch.empty_like(x)
    for part in _chunks(x, vocab_size, chunk):
        logits, lse, index, valid = _chunk_logits(x[part], head, targets[part])
        nll[part] = (lse - logits.gather(1, index)).mul_(valid).squeeze(1)
        d_logits = logits.sub_(lse).exp_()
        d_logits.scatter_(1, index, d_logits.gather(1, index) - 1.0)
        d_logits.mul_(valid * weight)
        d_x[part] = d_logits.to(x.dtype) @ head
        d_head.addmm_(d_logits.mT, x[part].to(d_head.dtype))
    return nll, d_x


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
    nll = x.new_empty(x.shape[0], dtype=accumulation_dtype(x))
    for part in _chunks(x, vocab_size, chunk):
        logits, lse, index, valid = _chunk_logits(x[part], wte[:vocab_size], targets[part])
        nll[part] = (lse - logits.gather(1, index)).mul_(valid).squeeze(1)
    return nll


def _chunks(x: Float[Tensor, "M D"], vocab_size: int, chunk: int | None) -> list[slice]:
    # eight tiles' worth: the products want many rows, and the elementwise passes are few
    rows = chunk or 8 * rows_per_tile(x, vocab_size)
    return [slice(start, start + rows) for start in range(0, x.shape[0], rows)]


def _chunk_logits(
    x: Float[Tensor, "c D"], head: Float[Tensor, "V D"], targets: Int[Tensor, " c"]
) -> tuple[Float[Tensor, "c V"], Float[Tensor, "c 1"], Int[Tensor, "c 1"], Float[Tensor, "c 1"]]:
    """Logits and their log-sum-exp in the accumulation dtype, target indices, and 1 or 0 for ignored."""
    logits = (x @ head.mT).to(accumulation_dtype(x))
    top = logits.amax(1, keepdim=True)
    lse = (logits - top).exp_().sum(1, keepdim=True).log_().add_(top)
    index = targets[:, None].long()
    return logits, lse, index.clamp(min=0), (index >= 0).to(logits.dtype)
