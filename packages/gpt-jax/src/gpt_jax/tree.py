"""Canonical NumPy arrays to the tree of JAX arrays, and back.

The vocabulary is padded inside to a multiple of 128; the blocks are stacked, or kept apart.
Shapes: L blocks, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import BLOCK_NAMES, END_NAMES, padded_vocabulary, parameter_shapes
from gpt_trainer.parameters import Parameters as Canonical

from gpt_jax.model import Block, Parameters

Leaves = dict[str, jax.Array]
"""Some or all of a tree's arrays by their paths: ``wte``, ``blocks.up_weight`` (of all blocks) or
``blocks.3.up_weight``."""


def named_leaves(tree: Any) -> Leaves:
    """Every array of a tree by its path, in the tree's order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in paths}


def field_of(leaf: str) -> str:
    """``blocks.3.up_weight`` -> ``up_weight``."""
    return leaf.rpartition(".")[2]


Put = Callable[[str, np.ndarray], jax.Array]
"""Brings a leaf, by its field's name, to where it belongs, as a copy."""


def on_one_device(_field: str, value: np.ndarray) -> jax.Array:
    """A leaf on JAX's default device."""
    return jnp.array(value)


def from_canonical(
    values: Canonical, config: ModelConfig, put: Put = on_one_device, *, stacked: bool = True
) -> Parameters:
    """The tree; rows of ``wte`` past the vocabulary are zero.

    Args:
        values: Canonical arrays, checked already.
        stacked: The blocks are one, along a leading axis; see ``Parameters``.
    """
    paths = ["blocks"] if stacked else [f"blocks.{layer}" for layer in range(config.n_layer)]
    names = [*END_NAMES, *(f"{path}.{field}" for path in paths for field in BLOCK_NAMES)]
    leaves = leaves_from_canonical(names, values, config, put)
    blocks = tuple(Block(**{field: leaves[f"{path}.{field}"] for field in BLOCK_NAMES}) for path in paths)
    ends = {name: leaves[name] for name in END_NAMES}
    return Parameters(blocks=blocks[0] if stacked else blocks, **ends)


def leaves_from_canonical(leaves: Iterable[str], values: Canonical, config: ModelConfig, put: Put) -> Leaves:
    """Some of the tree's arrays, as ``from_canonical`` makes them."""
    made = {}
    for leaf in leaves:
        arrays = [values[name] for name in _names(leaf, config)]
        host = np.stack(arrays) if _is_stacked(leaf) else arrays[0]
        if leaf == "wte":
            host = np.pad(host, ((0, padded_vocabulary(config.vocab_size) - config.vocab_size), (0, 0)))
        made[leaf] = put(field_of(leaf), host)
    return made


def to_canonical(leaves: Leaves, config: ModelConfig, fetch: Callable[[jax.Array], np.ndarray]) -> Canonical:
    """Canonical arrays of what the leaves hold, as copies, without the padding.

    Args:
        leaves: See ``named_leaves``.
        fetch: Brings a leaf to the host.
    """
    named: Canonical = {}
    for leaf, value in leaves.items():
        host = fetch(value)[: config.vocab_size] if leaf == "wte" else fetch(value)
        named |= dict(zip(_names(leaf, config), host if _is_stacked(leaf) else [host], strict=True))
    shapes = parameter_shapes(config)
    return {name: np.array(named[name], order="C", copy=True) for name in shapes if name in named}


def canonical_names(leaves: Iterable[str], config: ModelConfig) -> list[str]:
    """The parameters that the leaves hold: one each, or that of every block."""
    return [name for leaf in leaves for name in _names(leaf, config)]


def _names(leaf: str, config: ModelConfig) -> list[str]:
    if leaf in END_NAMES:
        return [END_NAMES[leaf]]
    _, *layer, field = leaf.split(".")
    return [f"transformer.h.{n}.{BLOCK_NAMES[field]}" for n in layer or range(config.n_layer)]


def _is_stacked(leaf: str) -> bool:
    """Whether a leaf holds a parameter of every block, along its first axis."""
    return leaf.startswith("blocks.") and leaf.count(".") == 1
