"""The ops that the model is written over, stated once, and what a forward keeps for its backward.

Two modules have them all: ``gpt_triton.reference`` in plain torch and ``gpt_triton.kernels`` in Triton. An
argument called ``d_<parameter>`` is a gradient that is added to, in place; those of activations are returned.

The stream before each norm, queries, keys, values and attention's output are always kept: 6 D numbers per
token. For the others ``Keep`` decides. Bytes are those of gpt2-124m's 12 layers in bfloat16 at 64 rows of
1,024 tokens, milliseconds what keeping saves on an H200: 7.9 for the first and the last row in a whole step,
1.5 for both norms (2026-11-29); the rest is their difference:

| kept | numbers per token and block | GB | milliseconds |
|---|---|--:|---|
| output of the norm before attention | D | 1.2 | 0.8: one pass of LayerNorm |
| output of the norm before the MLP | D | 1.2 | 0.8: one pass of LayerNorm |
| GELU's output and its slope | 8 D | 9.7 | 7.1: the MLP's first product |

Shapes: B rows, T positions, M = B*T, D width, W = 3 D, H heads, K input and N output width of a map, V
vocabulary, Vp padded vocabulary, C longest context, P elements of a flat buffer.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from gpt_trainer.backend import OptimizerConfig
from jaxtyping import Float, Int
from torch import Tensor

from gpt_triton.dropout import Dropout

EPSILON = 1e-5
"""Added to the variance in a LayerNorm."""


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
        qkv: Queries, keys and values, side by side.
        out: The output, needed for the row sums of ``d_out * out``.
        lse: Log-sum-exp of each row of scaled scores, float32: recovers the weights without a second
            pass over the row.
        segment_starts: First position that each position may see; ``None`` means 0 throughout.
        mask: Of the dropped weights, as ``kernels.dropout`` packs it; ``None`` without dropout, and
            where the backward draws it again.
    """

    qkv: Float[Tensor, "B T W"]
    out: Float[Tensor, "B T W//3"]
    lse: Float[Tensor, "B H T"]
    segment_starts: Int[Tensor, "B T"] | None
    mask: Int[Tensor, "2 N C 32"] | None = None


class BlockResiduals(NamedTuple):
    """Kept by one block; ``None`` where the backward computes it again.

    Attributes:
        norm1: Of the norm before attention; its ``x`` is the block's input.
        normed1: That norm's output.
        attention: Queries, keys, values, output and log-sum-exp.
        norm2: Of the norm before the MLP; its ``x`` is the stream between the branches.
        normed2: That norm's output.
        hidden: Hidden values of the MLP after GELU.
        slope: GELU's slope before it.
    """

    norm1: NormResiduals
    normed1: Float[Tensor, "M D"] | None
    attention: AttentionResiduals
    norm2: NormResiduals
    normed2: Float[Tensor, "M D"] | None
    hidden: Float[Tensor, "M 4*D"] | None
    slope: Float[Tensor, "M 4*D"] | None


class Residuals(NamedTuple):
    """Kept by the whole forward; ``blocks`` is emptied by the backward."""

    blocks: list[BlockResiduals]
    norm_f: NormResiduals


class Keep(NamedTuple):
    """What a block keeps besides the stream and attention's tensors.

    Attributes:
        norm1: The output of the norm before attention.
        norm2: The output of the norm before the MLP.
        hidden: GELU's output and its slope.
    """

    norm1: bool
    norm2: bool
    hidden: bool


NOTHING = Keep(False, False, False)


@runtime_checkable
class Ops(Protocol):
    """What either module offers; each op's mathematics stands with it."""

    def embedding_fwd(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"],
        wte: Float[Tensor, "Vp D"],
        wpe: Float[Tensor, "C D"],
        dropout: Dropout | None = None,
    ) -> Float[Tensor, "M D"]:
        """``dropout(wte[token] + wpe[position])``."""
        ...

    def embedding_bwd(
        self,
        tokens: Int[Tensor, "B T"],
        positions: Int[Tensor, "B T"],
        d_x: Float[Tensor, "M D"],
        d_wte: Float[Tensor, "Vp D"],
        d_wpe: Float[Tensor, "C D"],
        dropout: Dropout | None = None,
    ) -> None:
        """Gradients of both tables."""
        ...

    def layer_norm_fwd(
        self, x: Float[Tensor, "M D"], gain: Float[Tensor, " D"], bias: Float[Tensor, " D"]
    ) -> tuple[Float[Tensor, "M D"], NormResiduals]:
        """``gain (x - mean) / sqrt(var + 1e-5) + bias``, row by row."""
        ...

    def layer_norm_bwd(
        self,
        res: NormResiduals,
        gain: Float[Tensor, " D"],
        d_y: Float[Tensor, "M D"],
        d_gain: Float[Tensor, " D"],
        d_bias: Float[Tensor, " D"],
        d_skip: Float[Tensor, "M D"] | None = None,
    ) -> Float[Tensor, "M D"]:
        """Gradient of the input, with that which came past the norm."""
        ...

    def dropout_fwd(self, x: Float[Tensor, "M D"], dropout: Dropout) -> Float[Tensor, "M D"]:
        """``x`` where the mask keeps it, scaled by ``1 / (1 - rate)``."""
        ...

    def dropout_bwd(self, d_y: Float[Tensor, "M D"], dropout: Dropout) -> Float[Tensor, "M D"]:
        """Gradient of the input."""
        ...

    def linear_fwd(
        self, x: Float[Tensor, "M K"], weight: Float[Tensor, "K N"], bias: Float[Tensor, " N"] | None
    ) -> Float[Tensor, "M N"]:
        """``x W + b``."""
        ...

    def linear_gelu_fwd(
        self,
        x: Float[Tensor, "M K"],
        weight: Float[Tensor, "K N"],
        bias: Float[Tensor, " N"],
        slope: bool = True,
    ) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"] | None]:
        """``gelu(x W + b)``, and GELU's slope there if it is asked for."""
        ...

    def linear_residual_fwd(
        self,
        x: Float[Tensor, "M K"],
        weight: Float[Tensor, "K N"],
        bias: Float[Tensor, " N"],
        residual: Float[Tensor, "M N"],
        dropout: Dropout | None = None,
    ) -> Float[Tensor, "M N"]:
        """``residual + dropout(x W + b)``."""
        ...

    def linear_bwd_dx(self, d_y: Float[Tensor, "M N"], weight: Float[Tensor, "K N"]) -> Float[Tensor, "M K"]:
        """Gradient of the map's input."""
        ...

    def linear_gelu_bwd_dx(
        self,
        d_y: Float[Tensor, "M N"],
        weight: Float[Tensor, "K N"],
        slope: Float[Tensor, "M K"],
    ) -> Float[Tensor, "M K"]:
        """Gradient of what GELU took, where its output was the map's input."""
        ...

    def linear_bwd_dwdb(
        self,
        x: Float[Tensor, "M K"],
        d_y: Float[Tensor, "M N"],
        d_weight: Float[Tensor, "K N"],
        d_bias: Float[Tensor, " N"],
    ) -> None:
        """Gradients of matrix and bias."""
        ...

    def attention_fwd(
        self,
        qkv: Float[Tensor, "B T W"],
        n_head: int,
        segment_starts: Int[Tensor, "B T"] | None,
        dropout: Dropout | None = None,
    ) -> tuple[Float[Tensor, "B T W//3"], AttentionResiduals]:
        """Causal attention of every head, within documents."""
        ...

    def attention_bwd(
        self,
        res: AttentionResiduals,
        d_out: Float[Tensor, "B T D"],
        n_head: int,
        dropout: Dropout | None = None,
    ) -> Float[Tensor, "B T 3*D"]:
        """Gradient of queries, keys and values."""
        ...

    def linear_cross_entropy(
        self,
        x: Float[Tensor, "M D"],
        wte: Float[Tensor, "Vp D"],
        targets: Int[Tensor, " M"],
        vocab_size: int,
        weight: Float[Tensor, ""],
        d_wte: Float[Tensor, "Vp D"],
        chunk: int | None = None,
    ) -> tuple[Float[Tensor, " M"], Float[Tensor, "M D"]]:
        """Negative log-likelihood of every target, and the gradient of ``weight`` times their sum."""
        ...

    def linear_nll(
        self,
        x: Float[Tensor, "M D"],
        wte: Float[Tensor, "Vp D"],
        targets: Int[Tensor, " M"],
        vocab_size: int,
        chunk: int | None = None,
    ) -> Float[Tensor, " M"]:
        """Negative log-likelihood of every target alone."""
        ...

    def global_norm(self, flat: Float[Tensor, " P"]) -> Float[Tensor, " 1"]:
        """Euclidean norm."""
        ...

    def adamw_update(
        self,
        weights: Float[Tensor, " P"],
        gradients: Float[Tensor, " P"],
        first: Float[Tensor, " P"],
        second: Float[Tensor, " P"],
        shadow: Float[Tensor, " P"] | None,
        decay_count: int,
        norm: Float[Tensor, " 1"],
        scalars: Float[Tensor, " 4"],
        config: OptimizerConfig,
    ) -> None:
        """One step in place."""
        ...

    def orthogonalize(self, x: Float[Tensor, "N R C"], dtype: torch.dtype) -> Float[Tensor, "N R C"]:
        """About ``U V^T`` of each matrix ``U S V^T``, by Newton-Schulz."""
        ...

    def muon_update(
        self,
        weights: Float[Tensor, "L K R C"],
        gradients: Float[Tensor, "L K R C"],
        momentum: Float[Tensor, "L K R C"],
        shadow: Float[Tensor, "L K R C"] | None,
        norm: Float[Tensor, " 1"],
        scalars: Float[Tensor, " 4"],
        config: OptimizerConfig,
        dtype: torch.dtype,
    ) -> None:
        """One step in place; the gradients are used up."""
        ...
