"""Embedding:  x = dropout(wte[token] + wpe[position]).

The gradient of a table's row is the sum of the gradients at its occurrences, added in a fixed order.
Shapes: B rows, T positions, M = B*T, D width, Vp padded vocabulary, C rows of the position table.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.dropout import Dropout
from gpt_triton.reference.dropout import dropout_bwd, dropout_fwd


def embedding_fwd(
    tokens: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    wte: Float[Tensor, "Vp D"],
    wpe: Float[Tensor, "C D"],
    dropout: Dropout | None = None,
) -> Float[Tensor, "M D"]:
    """Sum of the token's and the position's row.

    Args:
        tokens: Token ids, checked by the caller.
        positions: Rows of ``wpe``, checked by the caller.
    """
    x = wte.index_select(0, tokens.reshape(-1))
    x.add_(wpe.index_select(0, positions.reshape(-1)))
    return x if dropout is None else dropout_fwd(x, dropout)


def embedding_bwd(
    tokens: Int[Tensor, "B T"],
    positions: Int[Tensor, "B T"],
    d_x: Float[Tensor, "M D"],
    d_wte: Float[Tensor, "Vp D"],
    d_wpe: Float[Tensor, "C D"],
    dropout: Dropout | None = None,
) -> None:
    """Gradients of both tables, added in place.

    Args:
        d_wte: Added to.
        d_wpe: Added to.
    """
    if dropout is not None:
        d_x = dropout_bwd(d_x, dropout)
    d_x = d_x.to(d_wte.dtype)
    _add_rows(d_wte, tokens.reshape(-1), d_x)
    _add_rows(d_wpe, positions.reshape(-1), d_x)


def _add_rows(table: Float[Tensor, "N D"], index: Int[Tensor, " M"], rows: Float[Tensor, "M D"]) -> None:
    """``table[index[i]] += rows[i]``, in an order that does not vary from run to run."""
    if table.device.type == "cpu":
        table.index_add_(0, index, rows)
    else:
        # index_add_ would use atomics here; accumulating index_put_ sorts the indices first
        table.index_put_((index.long(),), rows, accumulate=True)
