"""From a host batch to the device: checks, and copies that the host does not wait for.

Shapes: B rows, T positions, L blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from gpt_data.batch import Batch
from gpt_data.checks import check_batch
from gpt_trainer.model_config import ModelConfig
from jaxtyping import Int, Num
from torch import Tensor

from gpt_triton.model import Inputs

Shape = tuple[int, int, bool]
"""Rows, positions, and whether there are document boundaries."""


def upload(target: Num[Tensor, "*n"], source: Num[Tensor, "*n"]) -> None:
    """Copy a host tensor into a device tensor of the same dtype; on a GPU the host does not wait.

    The pinned copy may be dropped at once: torch's host allocator reuses it only after the copy is done.
    """
    if target.is_cuda:
        target.copy_(source.pin_memory(), non_blocking=True)
    else:
        target.copy_(source)


def send(source: Num[Tensor, "*n"], device: torch.device) -> Num[Tensor, "*n"]:
    """A copy on the device; on a GPU the host does not wait."""
    return source.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else source.clone()


class MicroBatch:
    """Device tensors that hold one micro-batch of a given shape; a recorded graph reads these addresses.

    Attributes:
        inputs: What the passes read.
        weight: One over the number of targets in the whole step.
        keys: Dropout keys, or ``None``.
    """

    def __init__(self, shape: Shape, config: ModelConfig, device: torch.device) -> None:
        rows, context, has_segments = shape
        # one transfer for all integers
        self._integers = torch.zeros(3 + has_segments, rows, context, dtype=torch.int32, device=device)
        self.inputs = Inputs(*self._integers)
        self.weight = torch.zeros((), device=device)
        self.keys = None
        if config.dropout:
            self.keys = torch.zeros(config.n_layer, 4, 3, dtype=torch.int64, device=device)

    def fill(self, batch: Batch, weight: float, keys: Int[Tensor, "L 4 3"] | None = None) -> None:
        """Copy a batch in.

        Args:
            batch: A checked batch of this shape.
            keys: Dropout keys; ``None`` at rate 0.
        """
        parts = [batch.tokens, batch.targets, batch.positions]
        if batch.segment_starts is not None:
            parts.append(batch.segment_starts)
        upload(self._integers, torch.from_numpy(np.stack(parts)))
        if self.keys is not None and keys is not None:
            upload(self.keys, keys)
        upload(self.weight, torch.tensor(weight))


def shape_of(batch: Batch) -> Shape:
    """What decides whether two batches are the same launches."""
    rows, context = batch.tokens.shape
    return rows, context, batch.segment_starts is not None


def load_batch(batch: Batch, config: ModelConfig, device: torch.device) -> Inputs:
    """A checked batch on the device, for a pass without dropout.

    Raises:
        ValueError: If a value is out of range.
    """
    check_batch(batch, context=config.context, vocab_size=config.vocab_size)
    held = MicroBatch(shape_of(batch), config, device)
    held.fill(batch, 1.0)
    return held.inputs
