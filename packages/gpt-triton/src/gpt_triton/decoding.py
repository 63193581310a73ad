"""Generation one token at a time, with the keys and values of earlier positions kept.

Shapes: B rows, n new positions, C longest context, M = B*n, D width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from gpt_data.checks import check_ids
from gpt_trainer.model_config import ModelConfig
from jaxtyping import Float, Float32, Int
from torch import Tensor

from gpt_triton.attention import attend
from gpt_triton.model import Block, Parameters, Plan, head_logits, split_heads


class Decoder:
    """Sequences that grow together; implements ``gpt_trainer.backend.Decoder``.

    Attributes:
        length: Tokens fed so far.
    """

    def __init__(self, params: Parameters, config: ModelConfig, plan: Plan, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rows={rows} is not positive")
        self.length = 0
        self._params, self._config, self._plan, self._rows = params, config, plan, rows
        shape = (config.n_layer, 2, rows, config.n_head, config.context, config.head_width)
        self._cache = torch.zeros(shape, dtype=plan.dtype, device=params.wte.device)

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append ``n`` tokens to every sequence; return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the model's context, or the shape or an id is wrong.
        """
        self._check(tokens)
        ops, count, device = self._plan.ops, tokens.shape[1], self._params.wte.device
        ids = torch.from_numpy(tokens.astype(np.int32)).to(device)
        positions = torch.arange(self.length, self.length + count, dtype=torch.int32, device=device)
        positions = positions.expand(self._rows, count).contiguous()
        x = ops.embedding_fwd(ids, positions, self._params.wte, self._params.wpe)  # [M, D]
        for layer, block in enumerate(self._params.blocks):
            x = self._apply_block(block, x, self._cache[layer], count)
        self.length += count
        last = x.view(self._rows, count, -1)[:, -1].contiguous()  # [B, D]
        hidden, _ = ops.layer_norm_fwd(last, self._params.ln_f_gain, self._params.ln_f_bias)
        return head_logits(hidden, self._params.wte, self._plan).cpu().numpy()

    def _check(self, tokens: np.ndarray) -> None:
        if tokens.ndim != 2 or tokens.shape[0] != self._rows or tokens.shape[1] < 1:
            raise ValueError(f"tokens have shape {tokens.shape}, expected ({self._rows}, n) with n >= 1")
        if self.length + tokens.shape[1] > self._config.context:
            raise ValueError(
                f"{self.length} + {tokens.shape[1]} tokens outgrow the context of {self._config.context}"
            )
        check_ids("tokens", tokens, 0, self._config.vocab_size)

    def _apply_block(
        self, block: Block, x: Float[Tensor, "M D"], cache: Float[Tensor, "2 B H C K"], count: int
    ) -> Float[Tensor, "M D"]:
        """One block for the new tokens; their keys and values are written into the cache."""
        ops, stop = self._plan.ops, self.length + count
        normed, _ = ops.layer_norm_fwd(x, block.ln1_gain, block.ln1_bias)
        qkv = ops.linear_fwd(normed, block.qkv_weight, block.qkv_bias)  # [M, 3D]
        q, k, v = split_heads(qkv.view(self._rows, count, -1), self._plan.n_head)
        keys, values = cache
        keys[:, :, self.length : stop], values[:, :, self.length : stop] = k, v
        mixed = attend(q, keys[:, :, :stop], values[:, :, :stop])  # [B, H, n, K]
        x = ops.linear_residual_fwd(
            mixed.transpose(1, 2).reshape(x.shape), block.out_weight, block.out_bias, x
        )
        normed, _ = ops.layer_norm_fwd(x, block.ln2_gain, block.ln2_bias)
        hidden, _ = ops.linear_gelu_fwd(normed, block.up_weight, block.up_bias, False)
        return ops.linear_residual_fwd(hidden, block.down_weight, block.down_bias, x)
