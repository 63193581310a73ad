"""Generation with the keys and values of earlier positions kept.

All shapes are static: the cache has room for a whole context, and new tokens are filled up to a power
of two, so that a prompt of any length and the single tokens after it take two compilations. What the
filling would write falls past the end of the cache, where it is dropped.

Shapes: B rows, n new positions (filled up), C context, D width, H heads, K head width, V vocabulary,
L blocks.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from gpt_data.checks import check_ids
from gpt_trainer.model_config import ModelConfig
from jax import lax
from jaxtyping import Array, Float, Float32, Int

from gpt_jax.attention import attention_weights, weighted_sum
from gpt_jax.mesh import EMBEDDINGS, MATRICES
from gpt_jax.model import Block, Parameters, Plan, gelu, layer_norm, linear, split_heads
from gpt_jax.precision import product

SMALLEST_FILL = 32


@struct.dataclass
class Cache:
    """Keys and values of one block; with a leading axis L, those of all blocks."""

    keys: Float[Array, "*L B C H K"]
    values: Float[Array, "*L B C H K"]


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
        # cast once: a decoder reads every weight for every token; and a copy, as training donates its own
        self._params = _prepare(params, plan)
        shape = (config.n_layer, rows, config.context, config.n_head, config.head_width)
        (device,) = params.wte.devices()
        empty = np.zeros(shape, jnp.dtype(plan.dtype))
        self._cache = Cache(jax.device_put(empty, device), jax.device_put(empty.copy(), device))

    def feed(self, tokens: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B V"]:
        """Append ``n`` tokens to every sequence; return the logits that follow the last.

        Raises:
            ValueError: If the sequences would outgrow the model's context, or the shape or an id is wrong.
        """
        self._check(tokens)
        count = tokens.shape[1]
        filled = np.zeros((self._rows, _fill(count)), np.int32)
        filled[:, :count] = tokens
        span = np.array([self.length, count], np.int32)
        self._cache, logits = _extend(self._params, self._cache, filled, span, self._plan)
        self.length += count
        return np.array(logits)[:, : self._config.vocab_size]

    def _check(self, tokens: np.ndarray) -> None:
        if tokens.ndim != 2 or tokens.shape[0] != self._rows or tokens.shape[1] < 1:
            raise ValueError(f"tokens have shape {tokens.shape}, expected ({self._rows}, n) with n >= 1")
        if self.length + tokens.shape[1] > self._config.context:
            raise ValueError(
                f"{self.length} + {tokens.shape[1]} tokens outgrow the context of {self._config.context}"
            )
        check_ids("tokens", tokens, 0, self._config.vocab_size)


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
        [leaf.astype(plan.dtype) if path[-1].name in MATRICES - EMBEDDINGS else leaf for path, leaf in paths],
    )


@partial(jax.jit, static_argnums=4, donate_argnums=1)
def _extend(
    params: Parameters, cache: Cache, tokens: Int[Array, "B n"], span: Int[Array, " 2"], plan: Plan
) -> tuple[Cache, Float[Array, "B V"]]:
    """The cache with the new positions in it, and the logits after the last of them.

    Args:
        cache: Keys and values so far; its memory is used again.
        tokens: New tokens, filled up on the right.
        span: How many tokens there are already, and how many of ``tokens`` count.
    """
    start, count = span
    offset = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    # what only fills up goes past the end
    position = jnp.where(offset < count, start + offset, cache.keys.shape[2])
    x = (params.wte[tokens] + params.wpe.at[position].get(mode="clip")[None]).astype(plan.dtype)

    def step(x: Array, layer: tuple[Block, Cache]) -> tuple[Array, Cache]:
        return _apply_block(layer[0], x, layer[1], position, plan)

    assert isinstance(params.blocks, Block)
    x, cache = lax.scan(step, x, (params.blocks, cache))
    last = lax.dynamic_slice_in_dim(x, count - 1, 1, axis=1)  # [B, 1, D]
    last = layer_norm(last, params.ln_f_gain, params.ln_f_bias)[:, 0]
    return cache, product("bd,vd->bv", last, params.wte.astype(plan.dtype), wide=True)


def _apply_block(
    block: Block, x: Float[Array, "B n D"], cache: Cache, position: Int[Array, " n"], plan: Plan
) -> tuple[Float[Array, "B n D"], Cache]:
    """One block on the new positions, which see all of the cache up to themselves."""
    qkv = linear(layer_norm(x, block.ln1_gain, block.ln1_bias), block.qkv_weight, block.qkv_bias)
    q, k, v = split_heads(qkv, plan.n_head)
    keys = cache.keys.at[:, position].set(k, mode="drop")
    values = cache.values.at[:, position].set(v, mode="drop")
    mask = jnp.arange(keys.shape[1], dtype=jnp.int32)[None, None] <= position[None, :, None]  # [1, n, C]
    mixed = weighted_sum(attention_weights(q, keys, mask), values).reshape(x.shape)
    x = x + linear(mixed, block.out_weight, block.out_bias)
    h = linear(layer_norm(x, block.ln2_gain, block.ln2_bias), block.up_weight, block.up_bias)
    return x + linear(gelu(h), block.down_weight, block.down_bias), Cache(keys, values)
