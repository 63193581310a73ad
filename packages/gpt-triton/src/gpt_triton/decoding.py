"""Generation one token at a time, with the keys and values of earlier positions kept.

A single new token of each sequence is computed over the whole cache, whatever its slot: the launches are the
same for each, and a GPU repeats them as recorded.

Shapes: B rows, n new positions, M = B*n, C slots of the cache, or those of them that are looked at, R rows of
a fork, N positions that are scored, D width, H heads, K head width, L blocks, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial

import numpy as np
import torch
from gpt_data.batch import IGNORE
from gpt_data.targets import spread
from gpt_trainer.sequences import Sequences
from gpt_trainer.torch_device import to_device
from gpt_trainer.torch_replay import Replay
from jaxtyping import Bool, Float, Float32, Int, Int32
from torch import Tensor

from gpt_triton.attention import attend, split_heads
from gpt_triton.compiling import launch_compiled
from gpt_triton.model import Block, Parameters, Plan, head_logits


class Decoder:
    """Sequences that grow together; implements ``gpt_trainer.backend.Decoder``.

    Args:
        records: What is launched for a single token is recorded once, on a GPU.
    """

    def __init__(
        self, params: Parameters, plan: Plan, sequences: Sequences, *, records: bool = False
    ) -> None:
        config, rows = sequences.config, len(sequences.filling)
        self._params, self._plan, self._records = params, plan, records
        shape = (config.n_layer, 2, rows, config.n_head, sequences.room, config.head_width)
        self._hold(sequences, torch.zeros(shape, dtype=plan.dtype, device=params.wte.device))

    def _hold(self, sequences: Sequences, cache: Float[Tensor, "L 2 B H C K"]) -> None:
        self._sequences, self._cache = sequences, cache
        extend = partial(_extend, self._params, cache, plan=self._plan)
        self._extend_by_one = Replay(extend, records=self._records, first=launch_compiled)

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append ``n`` tokens to every sequence; return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the model's context, or the shape or an id is wrong.
        """
        new = self._send(self._sequences.append(tokens))
        if tokens.shape[1] == 1:
            logits = self._extend_by_one(new)
        else:
            logits = self._launch(partial(_extend, self._params, self._taken(), new, plan=self._plan))
        return logits.cpu().numpy()

    def log_probs(
        self, tokens: Int[np.ndarray, "B n"], targets: Int[np.ndarray, "B n"]
    ) -> Float32[np.ndarray, "B n"]:
        """Append ``n`` tokens to every sequence; return the log-probability of each target, 0 where ignored.

        Raises:
            ValueError: If a token that a target depends on would outgrow the model's context, or a shape or
                an id is wrong.
        """
        new, index = self._send(self._sequences.append(tokens, targets)), np.flatnonzero(targets != IGNORE)
        x = self._launch(partial(_advance, self._params, self._taken(), new, plan=self._plan))
        if not len(index):
            return np.zeros(targets.shape, np.float32)
        hidden, picked = _norm(x[self._send(index)], self._params, self._plan), targets.ravel()[index]
        ops, wte, vocab = self._plan.ops, self._params.wte, self._plan.vocab_size
        nll = ops.linear_nll(hidden, wte, self._send(picked), vocab)
        return spread(-nll.cpu().numpy(), targets)

    def fork(self, rows: Int[np.ndarray, " R"]) -> Decoder:
        """A decoder of R sequences: number r goes on from where sequence ``rows[r]`` of this one is now."""
        made = copy(self)
        made._hold(self._sequences.fork(rows), self._cache[:, :, self._send(rows)])
        return made

    def _launch(self, function: Callable[[], Tensor]) -> Tensor:
        """Its result; on a GPU its kernels are compiled side by side."""
        return launch_compiled(function) if self._cache.is_cuda else function()

    def _taken(self) -> Float[Tensor, "L 2 B H C K"]:
        """The slots that are taken, the new ones among them."""
        return self._cache[:, :, :, :, : self._sequences.length]

    def _send(self, array: np.ndarray) -> Int32[Tensor, "..."]:
        return to_device(torch.from_numpy(array.astype(np.int32)), self._params.wte.device)


def _advance(
    params: Parameters, cache: Float[Tensor, "L 2 B H C K"], new: Int32[Tensor, "4 B n"], *, plan: Plan
) -> Float[Tensor, "M D"]:
    """The residual stream of the new tokens behind the last block.

    Args:
        cache: Keys and values; those of the new tokens are written into it.
        new: As ``Sequences.append`` gives them.
    """
    tokens, positions, slots, first = new
    room = torch.arange(cache.shape[4], device=cache.device)
    mask = (first[:, :, None] <= room) & (room <= slots[:, :, None])  # [B, n, C]
    x = plan.ops.embedding_fwd(tokens, positions, params.wte, params.wpe)
    for block, its_cache in zip(params.blocks, cache, strict=True):
        x = _apply_block(block, x, its_cache, slots[0].long(), mask, plan)
    return x


def _extend(
    params: Parameters, cache: Float[Tensor, "L 2 B H C K"], new: Int32[Tensor, "4 B n"], *, plan: Plan
) -> Float[Tensor, "B V"]:
    """The logits after the last of the new tokens.

    Args:
        cache: Keys and values; those of the new tokens are written into it.
    """
    x = _advance(params, cache, new, plan=plan)
    last = x.view(*new.shape[1:], -1)[:, -1].contiguous()  # [B, D]
    return head_logits(_norm(last, params, plan), params.wte, plan)


def _norm(x: Float[Tensor, "N D"], params: Parameters, plan: Plan) -> Float[Tensor, "N D"]:
    return plan.ops.layer_norm_fwd(x, params.ln_f_gain, params.ln_f_bias)[0]


def _apply_block(
    block: Block,
    x: Float[Tensor, "M D"],
    cache: Float[Tensor, "2 B H C K"],
    slots: Int[Tensor, " n"],
    mask: Bool[Tensor, "B n C"],
    plan: Plan,
) -> Float[Tensor, "M D"]:
    """One block on the new positions."""
    ops = plan.ops
    normed, _ = ops.layer_norm_fwd(x, block.ln1_gain, block.ln1_bias)
    qkv = ops.linear_fwd(normed, block.qkv_weight, block.qkv_bias)  # [M, 3D]
    q, *kv = split_heads(qkv.view(*mask.shape[:2], -1), plan.n_head)
    cache.index_copy_(3, slots, torch.stack(kv))
    keys, values = cache
    mixed = attend(q, keys, values, mask).transpose(1, 2).reshape(x.shape)
    x = ops.linear_residual_fwd(mixed, block.out_weight, block.out_bias, x)
    normed, _ = ops.layer_norm_fwd(x, block.ln2_gain, block.ln2_bias)
    hidden, _ = ops.linear_gelu_fwd(normed, block.up_weight, block.up_bias, False)
    return ops.linear_residual_fwd(hidden, block.down_weight, block.down_bias, x)
