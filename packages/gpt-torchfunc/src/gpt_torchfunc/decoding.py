"""Generation one token at a time, with the keys and values of earlier positions kept.

Shapes: B rows, n new positions, P positions so far with them, T context, D width, H heads, K head
width, V vocabulary, L blocks.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from gpt_data.checks import check_ids
from gpt_trainer.model_config import ModelConfig
from jaxtyping import Float, Float32, Int
from torch import Tensor

from gpt_torchfunc.attention import attend
from gpt_torchfunc.model import (
    Block,
    Parameters,
    Plan,
    gelu,
    layer_norm,
    linear,
    split_heads,
    statistics_dtype,
    unstack,
)


class Decoder:
    """Sequences that grow together; implements ``gpt_trainer.backend.Decoder``.

    Attributes:
        length: Tokens fed so far.
    """

    def __init__(self, params: Parameters, config: ModelConfig, plan: Plan, rows: int) -> None:
        if rows < 1:
            raise ValueError(f"rows={rows} is not positive")
        self.length = 0
        self._config, self._plan, self._rows = config, plan, rows
        # cast once: a decoder reads every weight for every token
        self._blocks = [Block(*map(self._cast_matrix, block)) for block in unstack(params.blocks)]
        self._head = params.wte[: config.vocab_size].to(plan.dtype)
        self._params = params
        shape = (config.n_layer, rows, config.n_head, config.context, config.head_width)
        self._keys, self._values = (
            torch.zeros(shape, dtype=plan.dtype, device=params.wte.device) for _ in range(2)
        )

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append ``n`` tokens to every sequence; return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the model's context, or the shape or an id is wrong.
        """
        self._check(tokens)
        ids = torch.from_numpy(np.ascontiguousarray(tokens, np.int64)).to(self._head.device)
        with torch.no_grad():
            logits = self._forward(ids)
        self.length += tokens.shape[1]
        return logits.cpu().numpy()

    def _check(self, tokens: np.ndarray) -> None:
        if tokens.ndim != 2 or tokens.shape[0] != self._rows or tokens.shape[1] < 1:
            raise ValueError(f"tokens have shape {tokens.shape}, expected ({self._rows}, n) with n >= 1")
        if self.length + tokens.shape[1] > self._config.context:
            raise ValueError(
                f"{self.length} + {tokens.shape[1]} tokens outgrow the context of {self._config.context}"
            )
        check_ids("tokens", tokens, 0, self._config.vocab_size)

    def _cast_matrix(self, leaf: Tensor) -> Tensor:
        return leaf.to(self._plan.dtype) if leaf.dim() == 2 else leaf

    def _forward(self, ids: Int[Tensor, "B n"]) -> Float[Tensor, "B V"]:
        stop = self.length + ids.shape[1]
        x = F.embedding(ids, self._params.wte) + self._params.wpe[self.length : stop]
        x = x.to(self._plan.dtype)
        for layer, block in enumerate(self._blocks):
            x = self._apply_block(layer, block, x)
        x = layer_norm(x[:, -1:], self._params.ln_f_gain, self._params.ln_f_bias)
        return (x[:, 0] @ self._head.T).to(statistics_dtype(x.dtype))

    def _apply_block(self, layer: int, block: Block, x: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        h = layer_norm(x, block.ln1_gain, block.ln1_bias)
        x = x + linear(self._attend(layer, block, h), block.out_weight, block.out_bias)
        h = layer_norm(x, block.ln2_gain, block.ln2_bias)
        return x + linear(gelu(linear(h, block.up_weight, block.up_bias)), block.down_weight, block.down_bias)

    def _attend(self, layer: int, block: Block, h: Float[Tensor, "B n D"]) -> Float[Tensor, "B n D"]:
        """Write this block's keys and values into the cache, then look back over all of it."""
        start, stop = self.length, self.length + h.shape[1]
        q, k, v = split_heads(linear(h, block.qkv_weight, block.qkv_bias), self._config.n_head)
        self._keys[layer, :, :, start:stop] = k
        self._values[layer, :, :, start:stop] = v
        index = torch.arange(stop, device=h.device)
        mask = index <= index[start:stop, None]  # [n, P]
        keys, values = self._keys[layer, :, :, :stop], self._values[layer, :, :, :stop]
        return attend(q, keys, values, mask[None]).transpose(1, 2).flatten(2)  # [B, n, D]
