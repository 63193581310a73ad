"""Generation one token at a time, with the keys and values of earlier positions kept.

Shapes: B rows, n new positions, t positions so far with them, C slots of the cache, R rows of a fork,
M = B*n, N positions that are scored, D width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from gpt_data.batch import IGNORE
from gpt_data.targets import spread
from gpt_trainer.sequences import Sequences
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from gpt_triton.attention import attend
from gpt_triton.model import Block, Parameters, Plan, head_logits, split_heads


class Decoder:
    """Sequences that grow together; implements ``gpt_trainer.backend.Decoder``."""

    def __init__(self, params: Parameters, plan: Plan, sequences: Sequences) -> None:
        config, rows = sequences.config, len(sequences.filling)
        self._params, self._plan, self._sequences = params, plan, sequences
        shape = (config.n_layer, 2, rows, config.n_head, sequences.room, config.head_width)
        self._cache = torch.zeros(shape, dtype=plan.dtype, device=params.wte.device)

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append ``n`` tokens to every sequence; return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the model's context, or the shape or an id is wrong.
        """
        x = self._append(tokens)
        last = self._norm(x.view(*tokens.shape, -1)[:, -1].contiguous())  # [B, D]
        return head_logits(last, self._params.wte, self._plan).cpu().numpy()

    def log_probs(
        self, tokens: Int[np.ndarray, "B n"], targets: Int[np.ndarray, "B n"]
    ) -> Float32[np.ndarray, "B n"]:
        """Append ``n`` tokens to every sequence; return the log-probability of each target, 0 where ignored.

        Raises:
            ValueError: If a token that a target depends on would outgrow the model's context, or a shape or
                an id is wrong.
        """
        x, index = self._append(tokens, targets), np.flatnonzero(targets != IGNORE)
        if not len(index):
            return np.zeros(targets.shape, np.float32)
        hidden, picked = self._norm(x[self._send(index)]), self._send(targets.ravel()[index])
        nll = self._plan.ops.linear_nll(hidden, self._params.wte, picked, self._plan.vocab_size)
        return spread(-nll.cpu().numpy(), targets)

    def fork(self, rows: Int[np.ndarray, " R"]) -> Decoder:
        """A decoder of R sequences: number r goes on from where sequence ``rows[r]`` of this one is now."""
        made = copy(self)
        made._sequences, made._cache = self._sequences.fork(rows), self._cache[:, :, self._send(rows)]
        return made

    def _send(self, array: np.ndarray) -> Int[Tensor, "..."]:
        return torch.from_numpy(array.astype(np.int32)).to(self._params.wte.device)

    def _norm(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return self._plan.ops.layer_norm_fwd(x, self._params.ln_f_gain, self._params.ln_f_bias)[0]

    def _append(self, tokens: np.ndarray, targets: np.ndarray | None = None) -> Float[Tensor, "M D"]:
        """The residual stream of the new tokens behind the last block; their keys and values are kept."""
        ids, positions = self._send(tokens), self._send(self._sequences.append(tokens, targets))
        x, mask = (
            self._plan.ops.embedding_fwd(ids, positions, self._params.wte, self._params.wpe),
            self._mask(ids),
        )
        for layer, block in enumerate(self._params.blocks):
            x = self._apply_block(block, x, self._cache[layer], mask)
        return x

    def _mask(self, ids: Int[Tensor, "B n"]) -> Bool[Tensor, "B n t"]:
        """What new tokens see: all up to themselves, but no filling other than themselves."""
        slots = torch.arange(self._sequences.length, device=ids.device)
        own = slots[-ids.shape[1] :]
        first = torch.minimum(self._send(self._sequences.filling)[:, None], own)  # [B, n]
        return (first[:, :, None] <= slots) & (slots <= own[:, None])

    def _apply_block(
        self,
        block: Block,
        x: Float[Tensor, "M D"],
        cache: Float[Tensor, "2 B H C K"],
        mask: Bool[Tensor, "B n t"],
    ) -> Float[Tensor, "M D"]:
        """One block for the new tokens; their keys and values are written into the cache."""
        ops, (rows, count, stop) = self._plan.ops, mask.shape
        normed, _ = ops.layer_norm_fwd(x, block.ln1_gain, block.ln1_bias)
        qkv = ops.linear_fwd(normed, block.qkv_weight, block.qkv_bias)  # [M, 3D]
        q, k, v = split_heads(qkv.view(rows, count, -1), self._plan.n_head)
        keys, values = cache[:, :, :, :stop]
        keys[:, :, -count:], values[:, :, -count:] = k, v
        mixed = attend(q, keys, values, mask)  # [B, H, n, K]
        x = ops.linear_residual_fwd(
            mixed.transpose(1, 2).reshape(x.shape), block.out_weight, block.out_bias, x
        )
        normed, _ = ops.layer_norm_fwd(x, block.ln2_gain, block.ln2_bias)
        hidden, _ = ops.linear_gelu_fwd(normed, block.up_weight, block.up_bias, False)
        return ops.linear_residual_fwd(hidden, block.down_weight, block.down_bias, x)
