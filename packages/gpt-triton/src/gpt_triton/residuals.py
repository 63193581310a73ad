"""What a forward op keeps for its backward, and the description of a dropout mask.

The reference ops and the Triton kernels share these types, so that the model is written once.
Shapes: B rows, T positions, M = B*T, D width, H heads.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor


class Dropout(NamedTuple):
    """One site's dropout mask, drawn by the rule of ``gpt_trainer.philox``; ``None`` means no dropout.

    Attributes:
        rate: Share of elements set to zero, in (0, 1).
        key: The two 32-bit Philox key words, on the device, so that a recorded launch can be replayed
            with another key.
    """

    rate: float
    key: Int[Tensor, " 2"]


class NormResiduals(NamedTuple):
    """Kept by LayerNorm.

    Attributes:
        x: The input, needed for the normalized values.
        mean: Row means, float32 whatever ``x`` is.
        rstd: Reciprocal row deviations, float32 whatever ``x`` is.
    """

    x: Float[Tensor, "M D"]
    mean: Float[Tensor, " M"]
    rstd: Float[Tensor, " M"]


class AttentionResiduals(NamedTuple):
    """Kept by attention; the weights are recomputed tile by tile.

    Attributes:
        qkv: Queries, keys and values, side by side: W = 3 D.
        out: The output, needed for the row sums of ``d_out * out``.
        lse: Log-sum-exp of each row of scaled scores, float32: recovers the weights without a second
            pass over the row.
        segment_starts: First position that each position may see; ``None`` means 0 throughout.
        mask: Of the dropped weights, as ``kernels.attention_mask`` packs it; ``None`` without dropout, and
            where the backward draws it again.
    """

    qkv: Float[Tensor, "B T W"]
    out: Float[Tensor, "B T W//3"]
    lse: Float[Tensor, "B H T"]
    segment_starts: Int[Tensor, "B T"] | None
    mask: Int[Tensor, "2 N C 32"] | None = None
