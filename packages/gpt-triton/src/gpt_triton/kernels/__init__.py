"""Every op of the model as Triton kernels, forward and backward, each derivative by hand.

The same functions in plain torch are in ``gpt_triton.reference``. Reading order: primitives, layer_norm,
matmul_kernels, matmul, dropout, attention, attention_backward, cross_entropy, embedding, adamw, muon; how
products and attention are cut is chosen in ``tiles``. These run on every GPU; ``hopper`` has products and
attention once more, for one kind of it.
"""

import os

from gpt_triton.kernels.adamw import adamw_update, global_norm
from gpt_triton.kernels.attention import attention_fwd
from gpt_triton.kernels.attention_backward import attention_bwd
from gpt_triton.kernels.cross_entropy import linear_cross_entropy, linear_nll
from gpt_triton.kernels.dropout import dropout_bwd, dropout_fwd
from gpt_triton.kernels.embedding import embedding_bwd, embedding_fwd
from gpt_triton.kernels.layer_norm import layer_norm_bwd, layer_norm_fwd
from gpt_triton.kernels.matmul import (
    linear_bwd_dwdb,
    linear_bwd_dx,
    linear_fwd,
    linear_gelu_bwd_dx,
    linear_gelu_fwd,
    linear_residual_fwd,
)
from gpt_triton.kernels.muon import muon_update, orthogonalize

# a * b + c is one instruction, as for all figures: Triton 3.10 would do so only if asked, 3.9 warns
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

__all__ = [
    "adamw_update",
    "attention_bwd",
    "attention_fwd",
    "dropout_bwd",
    "dropout_fwd",
    "embedding_bwd",
    "embedding_fwd",
    "global_norm",
    "layer_norm_bwd",
    "layer_norm_fwd",
    "linear_bwd_dwdb",
    "linear_bwd_dx",
    "linear_cross_entropy",
    "linear_fwd",
    "linear_gelu_bwd_dx",
    "linear_gelu_fwd",
    "linear_nll",
    "linear_residual_fwd",
    "muon_update",
    "orthogonalize",
]
