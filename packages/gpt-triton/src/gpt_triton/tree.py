"""Canonical NumPy arrays to the tree of tensors, and back.

All leaves of a tree are views into one flat buffer: one kernel for AdamW, one for the norm and one collective
for many GPUs. The blocks' matrices come first, then embeddings, then gains and biases: Muon and weight decay
each cover a prefix. Each view begins on a 128-byte boundary, in the bfloat16 shadow too, and the vocabulary
is padded inside with zero rows to a multiple of 128. Shapes: P elements of a buffer, S of a process's share
of it, n of a part.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from math import prod
from typing import NamedTuple

import numpy as np
import torch
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import BLOCK_NAMES, padded_vocabulary, parameter_shapes
from gpt_trainer.parameters import Parameters as Canonical
from jaxtyping import Float
from torch import Tensor

from gpt_triton.model import Block, Parameters, Stretch

ALIGN = 64
"""Elements: 128 bytes of bfloat16."""


class Layout(NamedTuple):
    """Where each parameter lies in a flat buffer.

    Attributes:
        starts: First element, by canonical name.
        shapes: Shape of the view by canonical name, padding rows included.
        size: Elements of a buffer, gaps included.
        muon_count: Elements before the first embedding: the blocks' matrices.
        decay_count: Elements before the first gain or bias.
    """

    starts: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    size: int
    muon_count: int
    decay_count: int


@lru_cache
def layout_of(config: ModelConfig) -> Layout:
    """Place every parameter of ``config`` on an aligned boundary: a block's matrices side by side."""
    shapes = parameter_shapes(replace(config, vocab_size=padded_vocabulary(config.vocab_size)))
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    in_blocks = [name for name in matrices if ".h." in name]
    embeddings = [name for name in matrices if ".h." not in name]
    starts, ends = {}, [0]
    for name in (*in_blocks, *embeddings, *(name for name, shape in shapes.items() if len(shape) == 1)):
        starts[name] = ends[-1]
        ends.append(_round_up(starts[name] + prod(shapes[name]), ALIGN))
    return Layout(starts, shapes, ends[-1], ends[len(in_blocks)], ends[len(matrices)])


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
            Block(**{field: leaf(f"transformer.h.{layer}.{name}") for field, name in BLOCK_NAMES.items()})
            for layer in range(config.n_layer)
        ),
        ln_f_gain=leaf("transformer.ln_f.weight"),
        ln_f_bias=leaf("transformer.ln_f.bias"),
        flat=flat,
        muon_count=layout.muon_count,
        decay_count=layout.decay_count,
    )


def zeros(config: ModelConfig, device: torch.device, shares: int = 1, *, uncut: bool = False) -> Parameters:
    """A tree of zeros, float32.

    Args:
        shares: So many equal shares of the buffer are aligned: it ends in elements that are nobody's.
        uncut: The blocks' matrices, which are not cut, do not count.
    """
    layout = layout_of(config)
    start = layout.muon_count if uncut else 0
    size = start + _round_up(layout.size - start, ALIGN * shares)
    return view_as_tree(torch.zeros(size, device=device), config)


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
    tree = zeros(config, device)
    fill(Stretch(tree.flat), values, config)
    return tree


def fill(stretch: Stretch, values: Canonical, config: ModelConfig) -> None:
    """Write canonical arrays, checked already, of all parameters of a stretch; what lies between is zero."""
    starts = layout_of(config).starts
    host = np.zeros(stretch.values.numel(), np.float32)
    for name in canonical_names(stretch, config):
        start = starts[name] - stretch.start
        host[start : start + values[name].size] = values[name].reshape(-1)
    stretch.values.copy_(torch.from_numpy(host))


def to_canonical(stretch: Stretch, config: ModelConfig) -> Canonical:
    """Canonical float32 arrays of what a stretch holds, as copies, without the padding."""
    starts, shapes = layout_of(config).starts, parameter_shapes(config)
    host = stretch.values.detach().to("cpu", torch.float32).numpy()
    return {
        name: host[starts[name] - stretch.start :][: prod(shapes[name])].reshape(shapes[name]).copy()
        for name in canonical_names(stretch, config)
    }


def canonical_names(stretch: Stretch, config: ModelConfig) -> list[str]:
    """The parameters that lie in a stretch."""
    starts, end = layout_of(config).starts, stretch.start + stretch.values.numel()
    return [name for name in parameter_shapes(config) if stretch.start <= starts[name] < end]


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
