"""Canonical NumPy arrays to the tree of tensors, and back.

All leaves of a tree are views into one flat buffer: one kernel for AdamW, one for the norm and one collective
for many GPUs. Matrices come first, then gains and biases, so that weight decay covers a prefix. Each view
begins on a 128-byte boundary, in the bfloat16 shadow too, and the vocabulary is padded inside with zero rows
to a multiple of 128. Shapes: P elements of a buffer, S of a process's share of it.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters as Canonical
from gpt_trainer.parameters import parameter_shapes
from gpt_trainer.ranks.place import Place
from jaxtyping import Float
from torch import Tensor

from gpt_triton.model import Block, Parameters

VOCABULARY_MULTIPLE = 128
"""The head's product is several times slower at an odd width (50257) than at the next multiple."""
ALIGN = 64
"""Elements: 128 bytes of bfloat16."""

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
assert tuple(BLOCK_NAMES) == Block._fields


class Layout(NamedTuple):
    """Where each parameter lies in a flat buffer.

    Attributes:
        starts: First element, by canonical name.
        shapes: Shape of the view by canonical name, padding rows included.
        size: Elements of a buffer, gaps included.
        decay_count: Elements before the first gain or bias.
    """

    starts: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    size: int
    decay_count: int


def padded_vocabulary(vocab_size: int) -> int:
    """``vocab_size``, rounded up to a multiple of 128."""
    return _round_up(vocab_size, VOCABULARY_MULTIPLE)


@lru_cache
def layout_of(config: ModelConfig) -> Layout:
    """Place every parameter of ``config``: matrices first, each on an aligned boundary."""
    shapes = parameter_shapes(config)
    shapes["transformer.wte.weight"] = (padded_vocabulary(config.vocab_size), config.d_model)
    starts, ends = {}, [0]
    for dimensions in (2, 1):
        for name, shape in shapes.items():
            if len(shape) == dimensions:
                starts[name] = ends[-1]
                ends.append(_round_up(starts[name] + prod(shape), ALIGN))
    matrices = sum(len(shape) == 2 for shape in shapes.values())
    return Layout(starts, shapes, ends[-1], ends[matrices])


def view_as_tree(
    flat: Float[Tensor, " P"], config: ModelConfig, vectors: Float[Tensor, " P"] | None = None
) -> Parameters:
    """A tree of views into ``flat``.

    Args:
        vectors: If given, gains and biases are views into this buffer instead.
    """
    layout = layout_of(config)

    def leaf(name: str) -> Tensor:
        start, shape = layout.starts[name], layout.shapes[name]
        buffer = flat if len(shape) == 2 or vectors is None else vectors
        return buffer[start : start + prod(shape)].view(shape)

    return Parameters(
        wte=leaf("transformer.wte.weight"),
        wpe=leaf("transformer.wpe.weight"),
        blocks=tuple(
            Block(*(leaf(f"transformer.h.{layer}.{name}") for name in BLOCK_NAMES.values()))
            for layer in range(config.n_layer)
        ),
        ln_f_gain=leaf("transformer.ln_f.weight"),
        ln_f_bias=leaf("transformer.ln_f.bias"),
        flat=flat,
        decay_count=layout.decay_count,
    )


def zeros(config: ModelConfig, device: torch.device, shares: int = 1) -> Parameters:
    """A tree of zeros, float32.

    Args:
        shares: So many equal shares of the buffer are aligned: it ends in elements that are nobody's.
    """
    size = _round_up(layout_of(config).size, ALIGN * shares)
    return view_as_tree(torch.zeros(size, device=device), config)


def share_of(tree: Parameters, place: Place) -> Parameters:
    """A process's share of the elements of a tree, for what reads the buffer alone.

    Args:
        tree: Of as many aligned shares as there are processes.
    """
    size = tree.flat.numel() // place.world
    first = place.rank * size
    own = tree.flat[first : first + size]
    return tree._replace(flat=own, decay_count=min(max(tree.decay_count - first, 0), size))


def shadow_of(params: Parameters, config: ModelConfig, dtype: torch.dtype) -> Parameters:
    """The tree that products read: matrices in ``dtype``, vectors the float32 ones; no copy in float32.

    Args:
        params: Float32 parameters.
    """
    if dtype == params.flat.dtype:
        return params
    return view_as_tree(params.flat.to(dtype), config, params.flat)


def from_canonical(values: Canonical, config: ModelConfig, device: torch.device) -> Parameters:
    """The tree on ``device``, as a copy; rows of ``wte`` past the vocabulary are zero.

    Args:
        values: Canonical arrays, checked already.
    """
    layout = layout_of(config)
    host = np.zeros(layout.size, np.float32)
    for name, start in layout.starts.items():
        host[start : start + values[name].size] = values[name].reshape(-1)
    return view_as_tree(torch.from_numpy(host).to(device), config)


def to_canonical(tree: Parameters, config: ModelConfig) -> Canonical:
    """Canonical float32 arrays, as copies, without the padding."""
    layout = layout_of(config)
    host = tree.flat.detach().to("cpu", torch.float32).numpy()
    return {
        name: host[layout.starts[name] :][: prod(shape)].reshape(shape).copy()
        for name, shape in parameter_shapes(config).items()
    }


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
