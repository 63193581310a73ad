"""Generation with a cache of keys and values: the forward of new tokens against all earlier ones.

Shapes: B rows, n new tokens, t tokens so far with the new ones, C context, D width, H heads, K head
width, V vocabulary.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import torch
from gpt_data.checks import check_ids
from gpt_trainer.model_config import ModelConfig
from jaxtyping import Float, Float32, Int
from torch import Tensor

from gpt_triton.buffers import BlockParams, Params


def head_logits(
    hidden: Float[Tensor, "M D"], wte: Float[Tensor, "Vp D"], vocab_size: int
) -> Float32[Tensor, "M V"]:
    """Logits in float32, whatever the dtype of the model."""
    return hidden.float() @ wte[:vocab_size].float().T


class CachedDecoder:
    """Implements ``gpt_trainer.backend.Decoder``."""

    def __init__(self, ops: ModuleType, params: Params, config: ModelConfig, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rows={rows} is not positive")
        self._ops, self._params, self._config, self._rows = ops, params, config, rows
        self._length = 0
        shape = (config.n_layer, 2, rows, config.n_head, config.context, config.head_width)
        self._cache = torch.zeros(shape, dtype=params.wte.dtype, device=params.wte.device)

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append tokens to every sequence and return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the context, or an id or the shape is out of range.
        """
        self._check(tokens)
        device, count = self._params.wte.device, tokens.shape[1]
        ids = torch.from_numpy(tokens.astype(np.int32)).to(device)
        positions = torch.arange(self._length, self._length + count, dtype=torch.int32, device=device)
        positions = positions.expand(self._rows, count).contiguous()
        x = self._ops.embedding_fwd(ids, positions, self._params.wte, self._params.wpe)  # [B*n, D]
        for layer, block in enumerate(self._params.blocks):
            x = self._block(block, x, self._cache[layer], count)
        self._length += count
        last = x.view(self._rows, count, -1)[:, -1].contiguous()  # [B, D]
        hidden, _ = self._ops.layer_norm_fwd(last, self._params.ln_f_gain, self._params.ln_f_bias)
        return head_logits(hidden, self._params.wte, self._config.vocab_size).cpu().numpy()

    def _check(self, tokens: Int[np.ndarray, "B n"]) -> None:
        if tokens.ndim != 2 or tokens.shape[0] != self._rows or tokens.shape[1] < 1:
            raise ValueError(f"tokens of shape {tokens.shape}, expected ({self._rows}, at least 1)")
        if self._length + tokens.shape[1] > self._config.context:
            raise ValueError(
                f"{self._length} + {tokens.shape[1]} tokens exceed the context of {self._config.context}"
            )
        check_ids("tokens", tokens, 0, self._config.vocab_size)

    def _block(
        self, p: BlockParams, x: Float[Tensor, "M D"], cache: Float[Tensor, "2 B H C K"], count: int
    ) -> Float[Tensor, "M D"]:
        """One block for the new tokens; their keys and values are written into the cache."""
        normed, _ = self._ops.layer_norm_fwd(x, p.ln1_gain, p.ln1_bias)
        qkv = self._ops.linear_fwd(normed, p.qkv_weight, p.qkv_bias)
        heads = qkv.view(self._rows, count, 3, self._config.n_head, -1).permute(
            2, 0, 3, 1, 4
        )  # [3, B, H, n, K]
        stop = self._length + count
        cache[:, :, :, self._length : stop] = heads[1:]
        attended = attend(heads[0], cache[0, :, :, :stop], cache[1, :, :, :stop])
        merged = attended.transpose(1, 2).reshape(x.shape)  # [M, D]
        x = self._ops.linear_residual_fwd(merged, p.out_weight, p.out_bias, x)
        normed, _ = self._ops.layer_norm_fwd(x, p.ln2_gain, p.ln2_bias)
        hidden, _ = self._ops.linear_gelu_fwd(normed, p.fc_weight, p.fc_bias)
        return self._ops.linear_residual_fwd(hidden, p.proj_weight, p.proj_bias, x)


def attend(
    q: Float[Tensor, "B H n K"], k: Float[Tensor, "B H t K"], v: Float[Tensor, "B H t K"]
) -> Float[Tensor, "B H n K"]:
    """Attention of the last ``n`` of ``t`` positions; softmax in float32."""
    count, total = q.shape[2], k.shape[2]
    s = q.float() @ k.float().mT / math.sqrt(q.shape[3])  # [B, H, n, t]
    hidden = torch.ones(count, total, dtype=torch.bool, device=q.device).triu_(total - count + 1)
    s.masked_fill_(hidden, -math.inf)
    p = s.sub_(s.amax(3, keepdim=True)).exp_()
    return (p @ v.float()).div_(p.sum(3, keepdim=True)).to(q.dtype)
