"""Canonical NumPy arrays to the tree of JAX arrays, and back.

The vocabulary is padded inside to a multiple of 128; the blocks are stacked, or kept apart.
Shapes: L blocks, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import jax
import numpy as np
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters as Canonical
from gpt_trainer.parameters import parameter_shapes

from gpt_jax.model import Block, Parameters

VOCABULARY_MULTIPLE = 128
"""The head's product is several times slower at an odd width (50257) than at the next multiple."""

BLOCK_NAMES = {
    "ln1_gain": "ln_1.weight",
    "ln1_bias": "ln_1.bias",
    "qkv_weight": "attn.c_attn.weight",
    "qkv_bias": "attn.c_attn.bias",
    "out_weight": "attn.c_proj.weight",
    "out_bias": "attn.c_proj.bias",
    "ln2_gain": "ln_2.weight",
    "ln2_bias": "ln_2.bias",
    "up_weight": "mlp.c_fc.weight",
    "up_bias": "mlp.c_fc.bias",
    "down_weight": "mlp.c_proj.weight",
    "down_bias": "mlp.c_proj.bias",
}
assert list(BLOCK_NAMES) == [field.name for field in fields(Block)]


def padded_vocabulary(vocab_size: int) -> int:
    """``vocab_size``, rounded up to a multiple of 128."""
    return -(-vocab_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


Place = Callable[[str, np.ndarray], jax.Array]
"""Brings a leaf, by its field's name, to where it belongs, as a copy."""


def zeros(config: ModelConfig, place: Place, *, stacked: bool) -> Parameters:
    """A tree of zeros."""
    nothing = {name: np.zeros(shape, np.float32) for name, shape in parameter_shapes(config).items()}
    return from_canonical(nothing, config, place, stacked=stacked)


def from_canonical(values: Canonical, config: ModelConfig, place: Place, *, stacked: bool) -> Parameters:
    """The tree; rows of ``wte`` past the vocabulary are zero.

    Args:
        values: Canonical arrays, checked already.
    """

    def block(layer: int) -> Block:
        named = {field: values[f"transformer.h.{layer}.{name}"] for field, name in BLOCK_NAMES.items()}
        return Block(**{field: place(field, value) for field, value in named.items()})

    def stack(name: str) -> np.ndarray:
        return np.stack([values[f"transformer.h.{layer}.{name}"] for layer in range(config.n_layer)])

    wte = np.zeros((padded_vocabulary(config.vocab_size), config.d_model), np.float32)
    wte[: config.vocab_size] = values["transformer.wte.weight"]
    return Parameters(
        wte=place("wte", wte),
        wpe=place("wpe", values["transformer.wpe.weight"]),
        blocks=Block(**{field: place(field, stack(name)) for field, name in BLOCK_NAMES.items()})
        if stacked
        else tuple(block(layer) for layer in range(config.n_layer)),
        ln_f_gain=place("ln_f_gain", values["transformer.ln_f.weight"]),
        ln_f_bias=place("ln_f_bias", values["transformer.ln_f.bias"]),
    )


def to_canonical(
    tree: Parameters, config: ModelConfig, fetch: Callable[[jax.Array], np.ndarray]
) -> Canonical:
    """Canonical arrays, as copies, without the padding.

    Args:
        fetch: Brings a leaf to the host.
    """
    named = {
        "transformer.wte.weight": fetch(tree.wte)[: config.vocab_size],
        "transformer.wpe.weight": fetch(tree.wpe),
        "transformer.ln_f.weight": fetch(tree.ln_f_gain),
        "transformer.ln_f.bias": fetch(tree.ln_f_bias),
    }
    for field, name in BLOCK_NAMES.items():
        if isinstance(tree.blocks, tuple):
            layers = [fetch(getattr(block, field)) for block in tree.blocks]
        else:
            layers = list(fetch(getattr(tree.blocks, field)))
        named |= {f"transformer.h.{layer}.{name}": value for layer, value in enumerate(layers)}
    return {name: np.array(named[name], order="C", copy=True) for name in parameter_shapes(config)}
