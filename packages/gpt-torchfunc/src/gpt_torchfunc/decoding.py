"""Generation one token at a time, with the keys and values of earlier positions kept.

Shapes: B rows, n new positions, P positions so far with them, R rows of a fork, D width, H heads, K head
width, V vocabulary, N positions that are scored.
"""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
import torch.nn.functional as F
from gpt_data.batch import IGNORE
from gpt_data.targets import spread
from gpt_trainer.sequences import Sequences
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from gpt_torchfunc.attention import attend
from gpt_torchfunc.loss import hidden_log_probs
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
    """Sequences that grow together; implements ``gpt_trainer.backend.Decoder``."""

    def __init__(self, params: Parameters, plan: Plan, sequences: Sequences) -> None:
        config, rows = sequences.config, len(sequences.filling)
        self._plan, self._sequences = plan, sequences
        # cast once: a decoder reads every weight for every token
        self._blocks = [Block(*map(self._cast_matrix, block)) for block in unstack(params.blocks)]
        self._head = params.wte.to(plan.dtype)
        self._params = params
        shape = (config.n_layer, rows, config.n_head, sequences.room, config.head_width)
        self._keys, self._values = (
            torch.zeros(shape, dtype=plan.dtype, device=params.wte.device) for _ in range(2)
        )

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append ``n`` tokens to every sequence; return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the model's context, or the shape or an id is wrong.
        """
        last = self._norm(self._append(tokens)[:, -1])  # [B, D]
        logits = (last @ self._head.T).to(statistics_dtype(last.dtype))
        return logits[:, : self._plan.vocab_size].cpu().numpy()

    def log_probs(
        self, tokens: Int[np.ndarray, "B n"], targets: Int[np.ndarray, "B n"]
    ) -> Float32[np.ndarray, "B n"]:
        """Append ``n`` tokens to every sequence; return the log-probability of each target, 0 where ignored.

        Raises:
            ValueError: If a token that a target depends on would outgrow the model's context, or a shape or
                an id is wrong.
        """
        x = self._append(tokens, targets).flatten(0, 1)  # [B n, D]
        index = np.flatnonzero(targets != IGNORE)
        hidden = self._norm(x[self._send(index)])
        picked = self._send(targets.ravel()[index])
        return spread(hidden_log_probs(hidden, self._head, picked, self._plan).cpu().numpy(), targets)

    def fork(self, rows: Int[np.ndarray, " R"]) -> Decoder:
        """A decoder of R sequences: number r goes on from where sequence ``rows[r]`` of this one is now."""
        made, index = copy(self), self._send(rows)
        made._sequences = self._sequences.fork(rows)
        made._keys, made._values = self._keys[:, index], self._values[:, index]
        return made

    def _cast_matrix(self, leaf: Tensor) -> Tensor:
        return leaf.to(self._plan.dtype) if leaf.dim() == 2 else leaf

    def _send(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int64)).to(self._head.device)

    def _norm(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return layer_norm(x, self._params.ln_f_gain, self._params.ln_f_bias)

    @torch.no_grad()
    def _append(self, tokens: np.ndarray, targets: np.ndarray | None = None) -> Float[Tensor, "B n D"]:
        """The residual stream of the new tokens behind the last block; their keys and values are kept."""
        positions = self._send(self._sequences.append(tokens, targets))
        x = F.embedding(self._send(tokens), self._params.wte) + F.embedding(positions, self._params.wpe)
        x, mask = x.to(self._plan.dtype), self._mask(tokens.shape[1])
        for layer, block in enumerate(self._blocks):
            x = self._apply_block(layer, block, x, mask)
        return x

    def _mask(self, count: int) -> Bool[Tensor, "#B n P"]:
        """What the last ``count`` tokens see: all up to themselves, but no filling other than themselves."""
        slots = torch.arange(self._sequences.length, device=self._head.device)
        own = slots[-count:]
        first = torch.minimum(self._send(self._sequences.filling)[:, None], own)  # [B, n]
        first = first if self._sequences.filling.any() else first[:1]
        return (first[:, :, None] <= slots) & (slots <= own[:, None])

    def _apply_block(
        self, layer: int, block: Block, x: Float[Tensor, "B n D"], mask: Bool[Tensor, "#B n P"]
    ) -> Float[Tensor, "B n D"]:
        h = layer_norm(x, block.ln1_gain, block.ln1_bias)
        x = x + linear(self._attend(layer, block, h, mask), block.out_weight, block.out_bias)
        h = layer_norm(x, block.ln2_gain, block.ln2_bias)
        return x + linear(gelu(linear(h, block.up_weight, block.up_bias)), block.down_weight, block.down_bias)

    def _attend(
        self, layer: int, block: Block, h: Float[Tensor, "B n D"], mask: Bool[Tensor, "#B n P"]
    ) -> Float[Tensor, "B n D"]:
        """Write this block's keys and values into the cache, then look back over all of it."""
        count, stop = mask.shape[1:]
        q, k, v = split_heads(linear(h, block.qkv_weight, block.qkv_bias), self._plan.n_head)
        keys, values = self._keys[layer, :, :, :stop], self._values[layer, :, :, :stop]
        keys[:, :, -count:], values[:, :, -count:] = k, v
        return attend(q, keys, values, mask).transpose(1, 2).flatten(2)  # [B, n, D]
