"""From a host batch to the device: checks, and copies that the host does not wait for.

Shapes: B rows, T positions, L blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.model_config import ModelConfig
from jaxtyping import Int32, Num, UInt32
from torch import Tensor

from gpt_triton.model import Inputs


def check_batch(batch: Batch, config: ModelConfig) -> None:
    """Refuse what a kernel would answer with foreign memory.

    Args:
        batch: From the host.
        config: The model's sizes.

    Raises:
        ValueError: Naming the first value that is out of range.
    """
    rows, context = batch.tokens.shape
    if rows < 1 or not 1 <= context <= config.context:
        raise ValueError(f"batch of {rows} x {context} tokens; the model's context is {config.context}")
    _check_range("token id", batch.tokens, 0, config.vocab_size - 1)
    _check_range("target", batch.targets, IGNORE, config.vocab_size - 1)
    if batch.segment_starts is not None:
        _check_range("segment start", batch.segment_starts, 0, context - 1)
        _check_range("position within its segment", batch.positions, 0, context - 1)


def _check_range(what: str, values: Int32[np.ndarray, "B T"], low: int, high: int) -> None:
    for value in (int(values.min()), int(values.max())):
        if not low <= value <= high:
            raise ValueError(f"{what} {value} outside {low} to {high}")


def upload(target: Num[Tensor, "*n"], source: Num[np.ndarray, "*n"]) -> None:
    """Copy an array of its own into a device tensor of the same dtype; on a GPU the host does not wait.

    The pinned copy may be dropped at once: torch's host allocator reuses it only after the copy is done.
    """
    host = torch.from_numpy(source)
    if target.is_cuda:
        target.copy_(host.pin_memory(), non_blocking=True)
    else:
        target.copy_(host)


class MicroBatch:
    """Device tensors that hold one micro-batch of a given shape; a recorded graph reads these addresses.

    Attributes:
        inputs: What the forward reads.
        targets: Token ids to predict, or ``IGNORE``.
        scale: One over the number of targets of the step.
    """

    def __init__(
        self, shape: tuple[int, int], has_segments: bool, n_layer: int, device: torch.device
    ) -> None:
        # one transfer for all integers
        self._integers = torch.zeros(4 if has_segments else 3, *shape, dtype=torch.int32, device=device)
        tokens, self.targets, positions, *starts = self._integers
        keys = torch.zeros(n_layer, 4, 2, dtype=torch.int64, device=device)
        self.inputs = Inputs(tokens, positions, starts[0] if has_segments else None, keys)
        self.scale = torch.zeros((), device=device)

    def fill(self, batch: Batch, keys: UInt32[np.ndarray, "L 4 2"] | None, scale: float) -> None:
        """Copy a batch in.

        Args:
            batch: A checked batch of this shape.
            keys: Dropout keys; ``None`` leaves the old ones, which rate 0 does not read.
            scale: One over the number of targets of the step.
        """
        parts = [batch.tokens, batch.targets, batch.positions]
        if batch.segment_starts is not None:
            parts.append(batch.segment_starts)
        upload(self._integers, np.stack(parts))
        if keys is not None:
            upload(self.inputs.keys, keys.astype(np.int64))
        upload(self.scale, np.array(scale, np.float32))


def load_batch(batch: Batch, config: ModelConfig, device: torch.device) -> MicroBatch:
    """A checked batch on the device, for a pass without dropout.

    Args:
        batch: From the host.
        config: The model's sizes.
        device: Where the model is.

    Raises:
        ValueError: If a value is out of range.
    """
    check_batch(batch, config)
    loaded = MicroBatch(batch.tokens.shape, batch.segment_starts is not None, config.n_layer, device)
    loaded.fill(batch, None, 1.0)
    return loaded
