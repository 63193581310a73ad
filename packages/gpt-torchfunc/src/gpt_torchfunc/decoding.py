"""Generation one token at a time, with the keys and values of earlier positions kept.

A single new token of each sequence is computed over the whole cache, whatever its slot: the launches are the
same for each, and a GPU repeats them as recorded.

Shapes: B rows, n new positions, C slots of the cache, or those of them that are looked at, R rows of a fork,
D width, H heads, K head width, L blocks, V vocabulary, Vp the same padded, N positions that are scored.
"""

from __future__ import annotations

from copy import copy
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from gpt_data.batch import IGNORE
from gpt_data.targets import spread
from gpt_trainer.sequences import Sequences
from gpt_trainer.torch_device import to_device
from gpt_trainer.torch_replay import Replay
from jaxtyping import Bool, Float, Float32, Int, Int64
from torch import Tensor

from gpt_torchfunc.attention import attend, split_heads, statistics_dtype
from gpt_torchfunc.device import any_order
from gpt_torchfunc.loss import token_nll
from gpt_torchfunc.model import (
    Block,
    Parameters,
    Plan,
    gelu,
    layer_norm,
    linear,
    unstack,
)


class Decoder:
    """Sequences that grow together; implements ``gpt_trainer.backend.Decoder``."""

    def __init__(self, params: Parameters, plan: Plan, sequences: Sequences) -> None:
        config, rows = sequences.config, len(sequences.filling)
        # cast once: a decoder reads every weight for every token
        self._params, self._head = _prepare(params, plan), params.wte.to(plan.dtype)
        self._plan = plan
        shape = (config.n_layer, 2, rows, config.n_head, sequences.room, config.head_width)
        self._hold(sequences, torch.zeros(shape, dtype=plan.dtype, device=params.wte.device))

    def _hold(self, sequences: Sequences, cache: Float[Tensor, "L 2 B H C K"]) -> None:
        self._sequences, self._cache = sequences, cache
        extend = partial(_extend, self._params, self._head, cache, plan=self._plan)
        self._extend_by_one = Replay(extend, records=cache.is_cuda)

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append ``n`` tokens to every sequence; return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the model's context, or the shape or an id is wrong.
        """
        new = self._send(self._sequences.append(tokens))
        if tokens.shape[1] == 1:
            logits = self._extend_by_one(new)
        else:
            logits = _extend(self._params, self._head, self._taken(), new, plan=self._plan)
        return logits[:, : self._plan.vocab_size].cpu().numpy()

    def log_probs(
        self, tokens: Int[np.ndarray, "B n"], targets: Int[np.ndarray, "B n"]
    ) -> Float32[np.ndarray, "B n"]:
        """Append ``n`` tokens to every sequence; return the log-probability of each target, 0 where ignored.

        Raises:
            ValueError: If a token that a target depends on would outgrow the model's context, or a shape or
                an id is wrong.
        """
        new = self._send(self._sequences.append(tokens, targets))
        x = _advance(self._params, self._taken(), new, plan=self._plan).flatten(0, 1)  # [B n, D]
        index = np.flatnonzero(targets != IGNORE)
        hidden = layer_norm(x[self._send(index)], self._params.ln_f_gain, self._params.ln_f_bias)
        picked = self._send(targets.ravel()[index])
        nll = token_nll(hidden, self._head, picked, self._plan)
        return spread(-nll.cpu().numpy(), targets)

    def fork(self, rows: Int[np.ndarray, " R"]) -> Decoder:
        """A decoder of R sequences: number r goes on from where sequence ``rows[r]`` of this one is now."""
        made = copy(self)
        made._hold(self._sequences.fork(rows), self._cache[:, :, self._send(rows)])
        return made

    def _taken(self) -> Float[Tensor, "L 2 B H C K"]:
        """The slots that are taken, the new ones among them."""
        return self._cache[:, :, :, :, : self._sequences.length]

    def _send(self, array: np.ndarray) -> Int64[Tensor, "..."]:
        return to_device(torch.from_numpy(array.astype(np.int64)), self._head.device)


def _prepare(params: Parameters, plan: Plan) -> Parameters:
    """The parameters with the blocks' matrices in the plan's precision."""
    cast = Block(*(leaf.to(plan.dtype) if leaf.dim() == 3 else leaf for leaf in params.blocks))
    return params._replace(blocks=cast)


@torch.no_grad()
def _advance(
    params: Parameters, cache: Float[Tensor, "L 2 B H C K"], new: Int64[Tensor, "4 B n"], *, plan: Plan
) -> Float[Tensor, "B n D"]:
    """The residual stream of the new tokens behind the last block.

    Args:
        cache: Keys and values; those of the new tokens are written into it.
        new: As ``Sequences.append`` gives them.
    """
    tokens, positions, slots, first = new
    room = torch.arange(cache.shape[4], device=cache.device)
    mask = (first[:, :, None] <= room) & (room <= slots[:, :, None])  # [B, n, C]
    x = (F.embedding(tokens, params.wte) + F.embedding(positions, params.wpe)).to(plan.dtype)
    for block, its_cache in zip(unstack(params.blocks), cache, strict=True):
        x = _apply_block(block, x, its_cache, slots[0], mask, plan)
    return x


@torch.no_grad()
def _extend(
    params: Parameters,
    head: Float[Tensor, "Vp D"],
    cache: Float[Tensor, "L 2 B H C K"],
    new: Int64[Tensor, "4 B n"],
    *,
    plan: Plan,
) -> Float[Tensor, "B Vp"]:
    """The logits after the last of the new tokens.

    Args:
        head: The token embedding in the plan's precision.
        cache: Keys and values; those of the new tokens are written into it.
    """
    last = _advance(params, cache, new, plan=plan)[:, -1]  # [B, D]
    last = layer_norm(last, params.ln_f_gain, params.ln_f_bias)
    return (last @ head.T).to(statistics_dtype(last.dtype))


def _apply_block(
    block: Block,
    x: Float[Tensor, "B n D"],
    cache: Float[Tensor, "2 B H C K"],
    slots: Int64[Tensor, " n"],
    mask: Bool[Tensor, "B n C"],
    plan: Plan,
) -> Float[Tensor, "B n D"]:
    """One block on the new positions."""
    h = layer_norm(x, block.ln1_gain, block.ln1_bias)
    q, *kv = split_heads(linear(h, block.qkv_weight, block.qkv_bias), plan.n_head)
    with any_order():
        cache.index_copy_(3, slots, torch.stack(kv))
    keys, values = cache
    mixed = attend(q, keys, values, mask).transpose(1, 2).flatten(2)  # [B, n, D]
    x = x + linear(mixed, block.out_weight, block.out_bias)
    h = layer_norm(x, block.ln2_gain, block.ln2_bias)
    return x + linear(gelu(linear(h, block.up_weight, block.up_bias)), block.down_weight, block.down_bias)
