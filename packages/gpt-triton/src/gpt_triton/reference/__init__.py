"""Every op of the model in plain torch, with its derivative by hand: the default without a GPU.

Written to be read, beside the formulas; ``gpt_triton.kernels`` has the same functions, to be run on a GPU.
Either module serves as the ``ops`` of ``gpt_triton.model``. Reading order: layers, attention,
cross_entropy, optimizer.
"""

from gpt_triton.reference.attention import attention_bwd, attention_fwd
from gpt_triton.reference.cross_entropy import linear_cross_entropy, linear_nll
from gpt_triton.reference.layers import (
    dropout_bwd,
    dropout_fwd,
    embedding_bwd,
    embedding_fwd,
    layer_norm_bwd,
    layer_norm_fwd,
    linear_bwd_dwdb,
    linear_bwd_dx,
    linear_fwd,
    linear_gelu_bwd_dx,
    linear_gelu_fwd,
    linear_residual_fwd,
)
from gpt_triton.reference.optimizer import adamw_update, global_norm, muon_update, orthogonalize

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
