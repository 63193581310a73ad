"""From canonical names to the tree of parameters and back, and functions over its leaves.

Canonical arrays go by Hugging Face's names, one per block; the tree stacks the blocks and pads the
vocabulary. Shapes: V vocabulary, D width, L blocks, P elements of a buffer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import BLOCK_NAMES, END_NAMES, padded_vocabulary, parameter_shapes
from gpt_trainer.parameters import Parameters as Canonical
from jaxtyping import Float
from torch import Tensor

from gpt_torchfunc.model import Block, Parameters

ALIGN = 64
"""Elements: each view of a shared buffer begins on a 256-byte boundary."""


LEAF_NAMES = ("wte", "wpe", *Block._fields, "ln_f_gain", "ln_f_bias")
Leaves = dict[str, Tensor]
"""Some or all of a tree's tensors by name, in this order."""


def leaves(tree: Parameters) -> list[Tensor]:
    """The tree's tensors, in the order of ``LEAF_NAMES``."""
    return [tree.wte, tree.wpe, *tree.blocks, tree.ln_f_gain, tree.ln_f_bias]


def from_leaves(values: Iterable[Tensor]) -> Parameters:
    """The tree that ``leaves`` took apart."""
    wte, wpe, *blocks, ln_f_gain, ln_f_bias = values
    return Parameters(wte, wpe, Block(*blocks), ln_f_gain, ln_f_bias)


def map_leaves(function: Callable[[Tensor], Tensor], tree: Parameters) -> Parameters:
    """``function`` of every tensor, as a tree."""
    return from_leaves([function(leaf) for leaf in leaves(tree)])


def named_leaves(tree: Parameters) -> Leaves:
    """The tree's tensors by name, in order."""
    return dict(zip(LEAF_NAMES, leaves(tree), strict=True))


def canonical_names(leaves: Iterable[str], config: ModelConfig) -> list[str]:
    """The parameters that the leaves hold: one each, or that of every block."""
    return [name for leaf in leaves for name in _names(leaf, config)]


def zeros(config: ModelConfig, device: torch.device) -> Parameters:
    """A tree of zeros."""
    shapes = parameter_shapes(replace(config, vocab_size=padded_vocabulary(config.vocab_size)))
    named = {leaf: [shapes[name] for name in _names(leaf, config)] for leaf in LEAF_NAMES}
    sizes = {leaf: each[0] if leaf in END_NAMES else (len(each), *each[0]) for leaf, each in named.items()}
    return from_leaves([torch.zeros(size, device=device) for size in sizes.values()])


def zeros_in_one(
    tree: Parameters, shares: int = 1
) -> tuple[Float[Tensor, " P"], Float[Tensor, ""], Parameters]:
    """A buffer of zeros, and views into it: a number, and a tree of the same shapes.

    One buffer is one collective, however many leaves there are.

    Args:
        shares: Each leaf is followed by as much as makes so many equal, aligned shares of it.
    """
    counts = _counts(tree, shares)
    flat = leaves(tree)[0].new_zeros(sum(counts) + ALIGN)
    *parts, last = flat.split([*counts, ALIGN])
    views = [part[: leaf.numel()].view(leaf.shape) for part, leaf in zip(parts, leaves(tree), strict=True)]
    return flat, last[0], from_leaves(views)


def in_shares(
    flat: Float[Tensor, " P"], tree: Parameters, shares: int, uncut: AbstractSet[str] = frozenset()
) -> list[list[Tensor]]:
    """For each leaf of a tree in a buffer of ``zeros_in_one`` the equal parts of its piece of the buffer.

    Args:
        uncut: Leaves that are cut between the blocks alone, into parts as equal as they can be.
    """
    counts = _counts(tree, shares)
    return [
        _between_blocks(piece, leaf, shares) if name in uncut else list(piece.chunk(shares))
        for (name, leaf), piece in zip(
            named_leaves(tree).items(), flat[: sum(counts)].split(counts), strict=True
        )
    ]


def _between_blocks(piece: Tensor, leaf: Tensor, shares: int) -> list[Tensor]:
    ends = [len(leaf) * share // shares * leaf[0].numel() for share in range(shares + 1)]
    return [piece[begin:end] for begin, end in pairwise(ends)]


def _counts(tree: Parameters, shares: int) -> list[int]:
    """Elements of a buffer for each leaf."""
    multiple = ALIGN * shares
    return [-(-leaf.numel() // multiple) * multiple for leaf in leaves(tree)]


def from_canonical(values: Canonical, config: ModelConfig, device: torch.device) -> Parameters:
    """The tree on ``device``, as a copy; rows of ``wte`` past the vocabulary are zero.

    Args:
        values: Canonical arrays, checked already.
    """
    return from_leaves(leaves_from_canonical(LEAF_NAMES, values, config, device).values())


def leaves_from_canonical(
    leaves: Iterable[str], values: Canonical, config: ModelConfig, device: torch.device
) -> Leaves:
    """Some of the tree's tensors, as ``from_canonical`` makes them."""
    made = {}
    for leaf in leaves:
        arrays = [values[name] for name in _names(leaf, config)]
        host = arrays[0] if leaf in END_NAMES else np.stack(arrays)
        if leaf == "wte":
            host = np.pad(host, ((0, padded_vocabulary(config.vocab_size) - config.vocab_size), (0, 0)))
        made[leaf] = torch.tensor(np.ascontiguousarray(host), device=device)
    return made


def to_canonical(leaves: Leaves, config: ModelConfig) -> Canonical:
    """Canonical arrays of what the leaves hold, as copies, without the padding.

    Args:
        leaves: See ``named_leaves``.
    """
    named: Canonical = {}
    for leaf, value in leaves.items():
        host = value.detach().cpu().numpy()
        host = host[: config.vocab_size] if leaf == "wte" else host
        named |= dict(zip(_names(leaf, config), [host] if leaf in END_NAMES else host, strict=True))
    shapes = parameter_shapes(config)
    return {name: np.array(named[name], order="C") for name in shapes if name in named}


def _names(leaf: str, config: ModelConfig) -> list[str]:
    if leaf in END_NAMES:
        return [END_NAMES[leaf]]
    return [f"transformer.h.{layer}.{BLOCK_NAMES[leaf]}" for layer in range(config.n_layer)]
