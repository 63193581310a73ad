"""Flat buffers for parameters, gradients and moments, and named trees of views into them.

One buffer means one kernel for AdamW, one for the norm and one collective for many GPUs. Matrices come
first, then gains and biases, so that weight decay covers a prefix. Each view begins on a 128-byte
boundary, in the bfloat16 shadow too, and the token table is padded with zero rows to a multiple of 128.
Shapes: V vocabulary, Vp padded vocabulary, C context, D width, P elements of a buffer.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, parameter_shapes
from jaxtyping import Float
from torch import Tensor

ALIGN = 64  # elements: 128 bytes of bfloat16
VOCAB_MULTIPLE = 128
WTE = "transformer.wte.weight"


class BlockParams(NamedTuple):
    """Parameters of one block; matrices are (in, out), the fields in canonical order."""

    ln1_gain: Float[Tensor, " D"]
    ln1_bias: Float[Tensor, " D"]
    qkv_weight: Float[Tensor, "D 3*D"]
    qkv_bias: Float[Tensor, " 3*D"]
    out_weight: Float[Tensor, "D D"]
    out_bias: Float[Tensor, " D"]
    ln2_gain: Float[Tensor, " D"]
    ln2_bias: Float[Tensor, " D"]
    fc_weight: Float[Tensor, "D 4*D"]
    fc_bias: Float[Tensor, " 4*D"]
    proj_weight: Float[Tensor, "4*D D"]
    proj_bias: Float[Tensor, " D"]


class Params(NamedTuple):
    """Parameters of the model, or anything of the same shapes: gradients, moments."""

    wte: Float[Tensor, "Vp D"]
    wpe: Float[Tensor, "C D"]
    blocks: tuple[BlockParams, ...]
    ln_f_gain: Float[Tensor, " D"]
    ln_f_bias: Float[Tensor, " D"]


class Slot(NamedTuple):
    """Where one parameter lies in a flat buffer.

    Attributes:
        start: First element.
        shape: Shape of the view, padding rows included.
        rows: Leading rows that are the parameter proper; those after them are zero.
    """

    start: int
    shape: tuple[int, ...]
    rows: int


class Layout(NamedTuple):
    """The slots by canonical name, in canonical order.

    Attributes:
        slots: Canonical name to slot.
        size: Elements of a buffer, gaps included.
        decay_count: Elements before the first gain or bias.
    """

    slots: dict[str, Slot]
    size: int
    decay_count: int


def layout_of(config: ModelConfig) -> Layout:
    """Place every parameter of ``config``: matrices first, each on an aligned boundary."""
    shapes = parameter_shapes(config)
    placed, start, decay_count = {}, 0, 0
    for dimensions in (2, 1):
        for name, shape in shapes.items():
            if len(shape) != dimensions:
                continue
            rows = _round_up(shape[0], VOCAB_MULTIPLE) if name == WTE else shape[0]
            placed[name] = Slot(start, (rows, *shape[1:]), shape[0])
            start = _round_up(start + rows * int(np.prod(shape[1:], dtype=int)), ALIGN)
        if dimensions == 2:
            decay_count = start
    return Layout({name: placed[name] for name in shapes}, start, decay_count)


def tree_of(flat: Float[Tensor, " P"], layout: Layout, vectors: Float[Tensor, " P"] | None = None) -> Params:
    """Named views into ``flat``.

    Args:
        vectors: If given, 1-D parameters are views into this buffer instead: gains and biases are used
            in float32 where matrices are used in bfloat16.
    """
    wte, wpe, *rest = (
        _view(flat if len(slot.shape) == 2 or vectors is None else vectors, slot)
        for slot in layout.slots.values()
    )
    *in_blocks, ln_f_gain, ln_f_bias = rest
    width = len(BlockParams._fields)
    blocks = tuple(BlockParams(*in_blocks[i : i + width]) for i in range(0, len(in_blocks), width))
    return Params(wte, wpe, blocks, ln_f_gain, ln_f_bias)


def write_arrays(flat: Float[Tensor, " P"], layout: Layout, values: Parameters) -> None:
    """Copy canonical arrays into a buffer; padding becomes zero."""
    host = np.zeros(layout.size, np.float32)
    for name, slot in layout.slots.items():
        count = values[name].size
        host[slot.start : slot.start + count] = values[name].reshape(-1)
    flat.copy_(torch.from_numpy(host))


def read_arrays(flat: Float[Tensor, " P"], layout: Layout) -> Parameters:
    """Copies of a buffer's content by canonical name, without padding."""
    host = flat.detach().to("cpu", torch.float32).numpy()
    return {
        name: host[slot.start : slot.start + int(np.prod(slot.shape))].reshape(slot.shape)[: slot.rows].copy()
        for name, slot in layout.slots.items()
    }


def _view(flat: Float[Tensor, " P"], slot: Slot) -> Tensor:
    return flat[slot.start : slot.start + int(np.prod(slot.shape))].view(slot.shape)


def _round_up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
