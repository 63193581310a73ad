"""Generation with the keys and values of earlier positions kept.

All shapes are static: the cache has room for a whole context, and new tokens are filled up to a power
of two, so that a prompt of any length and the single tokens after it take two compilations. What is
filled up on the right would go behind the end of the cache, and is dropped.

Shapes: B rows, n new positions (filled up to m), C slots of the cache, R rows of a fork, N positions that
are scored, D width, H heads, K head width, V vocabulary, Vp the same padded, L blocks.
"""

from __future__ import annotations

from copy import copy
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gpt_data.batch import IGNORE
from gpt_data.targets import spread, target_index
from gpt_trainer.sequences import Sequences
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from gpt_jax.attention import attention_weights, split_heads, weighted_sum
from gpt_jax.loss import token_nll
from gpt_jax.model import Block, Parameters, Plan, gelu, layer_norm, linear
from gpt_jax.optimizer import BLOCK_MATRICES
from gpt_jax.precision import product

SMALLEST_FILL = 32


@struct.dataclass
class Cache:
    """Keys and values of one block; with a leading axis L, those of all blocks."""

    keys: Float[Array, "*L B C H K"]
    values: Float[Array, "*L B C H K"]


class Decoder:
    """Sequences that grow together; implements ``gpt_trainer.backend.Decoder``."""

    def __init__(self, params: Parameters, plan: Plan, sequences: Sequences) -> None:
        config, rows = sequences.config, len(sequences.filling)
        self._plan, self._sequences = plan, sequences
        # cast once: a decoder reads every weight for every token; and a copy, as training donates its own
        self._params = _prepare(params, plan)
        shape = (config.n_layer, rows, sequences.room, config.n_head, config.head_width)
        (device,) = params.wte.devices()
        empty = np.zeros(shape, jnp.dtype(plan.dtype))
        self._cache = Cache(jax.device_put(empty, device), jax.device_put(empty.copy(), device))

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append ``n`` tokens to every sequence; return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the model's context, or the shape or an id is wrong.
        """
        new, last = self._new(tokens), np.int32(tokens.shape[1] - 1)
        self._cache, logits = _extend(self._params, self._cache, new, last, self._plan)
        return np.array(logits)[:, : self._plan.vocab_size]

    def log_probs(
        self, tokens: Int[np.ndarray, "B n"], targets: Int[np.ndarray, "B n"]
    ) -> Float32[np.ndarray, "B n"]:
        """Append ``n`` tokens to every sequence; return the log-probability of each target, 0 where ignored.

        Raises:
            ValueError: If a token that a target depends on would outgrow the model's context, or a shape or
                an id is wrong.
        """
        new = self._new(tokens, targets)
        self._cache, x = _advance(self._params, self._cache, new, self._plan)
        if (targets == IGNORE).all():
            return np.zeros(targets.shape, np.float32)
        missing = new.shape[2] - targets.shape[1]
        filled = np.pad(targets.astype(np.int32), ((0, 0), (0, missing)), constant_values=IGNORE)
        values = _score(self._params, x, target_index(filled), filled, self._plan)
        return spread(np.asarray(values), filled)[:, : targets.shape[1]]

    def fork(self, rows: Int[np.ndarray, " R"]) -> Decoder:
        """A decoder of R sequences: number r goes on from where sequence ``rows[r]`` of this one is now."""
        made = copy(self)
        made._sequences, made._cache = self._sequences.fork(rows), _take(self._cache, rows.astype(np.int32))
        return made

    def _new(self, tokens: np.ndarray, targets: np.ndarray | None = None) -> Int32[np.ndarray, "4 B m"]:
        """What ``Sequences.append`` gives, filled up on the right."""
        new = self._sequences.append(tokens, targets)
        filled = np.zeros((*new.shape[:2], _fill(new.shape[2])), np.int32)
        filled[2] = self._sequences.room
        filled[:, :, : new.shape[2]] = new
        return filled


def _fill(count: int) -> int:
    """Columns that ``count`` new tokens take: 1, or a power of two from 32 on."""
    return 1 if count == 1 else max(SMALLEST_FILL, 1 << (count - 1).bit_length())


@partial(jax.jit, static_argnums=1)
def _prepare(params: Parameters, plan: Plan) -> Parameters:
    """A copy with stacked blocks and with matrices in the plan's precision."""
    blocks = params.blocks
    if isinstance(blocks, tuple):
        blocks = jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)
    stacked = Parameters(params.wte, params.wpe, blocks, params.ln_f_gain, params.ln_f_bias)
    paths, treedef = jax.tree_util.tree_flatten_with_path(stacked)
    return jax.tree.unflatten(
        treedef,
        # embeddings are gathered from float32, as in training
        [leaf.astype(plan.dtype) if path[-1].name in BLOCK_MATRICES else leaf for path, leaf in paths],
    )


@partial(jax.jit, static_argnums=3, donate_argnums=1)
def _advance(
    params: Parameters, cache: Cache, new: Int32[Array, "4 B n"], plan: Plan
) -> tuple[Cache, Float[Array, "B n D"]]:
    """The cache with the new positions in it, and the residual stream of these behind the last block.

    Args:
        cache: Keys and values so far; its memory is used again.
        new: As ``Sequences.append`` gives them.
    """
    tokens, positions, slots, first = new
    room = jnp.arange(cache.keys.shape[2], dtype=jnp.int32)[None, None]
    mask = (first[:, :, None] <= room) & (room <= slots[:, :, None])  # [B, n, C]
    x = (params.wte[tokens] + params.wpe[positions]).astype(plan.dtype)

    def step(x: Array, layer: tuple[Block, Cache]) -> tuple[Array, Cache]:
        return _apply_block(layer[0], x, layer[1], slots[0], mask, plan)

    assert isinstance(params.blocks, Block)
    x, cache = lax.scan(step, x, (params.blocks, cache))
    return cache, x


@partial(jax.jit, static_argnums=4, donate_argnums=1)
def _extend(
    params: Parameters, cache: Cache, new: Int32[Array, "4 B n"], last: Int[Array, ""], plan: Plan
) -> tuple[Cache, Float[Array, "B Vp"]]:
    """The cache with the new positions in it, and the logits after number ``last`` of them."""
    cache, x = _advance(params, cache, new, plan)
    hidden = lax.dynamic_slice_in_dim(x, last, 1, axis=1)  # [B, 1, D]
    hidden = layer_norm(hidden, params.ln_f_gain, params.ln_f_bias)[:, 0]
    return cache, product("bd,vd->bv", hidden, params.wte.astype(plan.dtype), wide=True)


@partial(jax.jit, static_argnums=4)
def _score(
    params: Parameters,
    x: Float[Array, "B n D"],
    index: Int[Array, " N"] | None,
    targets: Int[Array, "B n"],
    plan: Plan,
) -> Float[Array, " N"]:
    """Log-probability of each target that ``index`` picks; of all if it is ``None``."""
    hidden, targets = x.reshape(-1, x.shape[-1]), targets.reshape(-1)
    if index is not None:
        hidden, targets = hidden[index], targets[index]
    hidden = layer_norm(hidden, params.ln_f_gain, params.ln_f_bias)
    return -token_nll(hidden, params.wte, targets, plan)


@jax.jit
def _take(cache: Cache, rows: Int[Array, " R"]) -> Cache:
    """The cache of some rows."""
    return Cache(cache.keys[:, rows], cache.values[:, rows])


def _apply_block(
    block: Block,
    x: Float[Array, "B n D"],
    cache: Cache,
    slots: Int[Array, " n"],
    mask: Bool[Array, "B n C"],
    plan: Plan,
) -> tuple[Float[Array, "B n D"], Cache]:
    """One block on the new positions; what would be written behind the cache's end is dropped."""
    qkv = linear(layer_norm(x, block.ln1_gain, block.ln1_bias), block.qkv_weight, block.qkv_bias)
    q, k, v = split_heads(qkv, plan.n_head)
    keys = cache.keys.at[:, slots].set(k, mode="drop")
    values = cache.values.at[:, slots].set(v, mode="drop")
    mixed = weighted_sum(attention_weights(q, keys, mask), values).reshape(x.shape)
    x = x + linear(mixed, block.out_weight, block.out_bias)
    h = linear(layer_norm(x, block.ln2_gain, block.ln2_bias), block.up_weight, block.up_bias)
    return x + linear(gelu(h), block.down_weight, block.down_bias), Cache(keys, values)
