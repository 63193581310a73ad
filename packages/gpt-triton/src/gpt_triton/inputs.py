"""From a host batch to the device: checks, and copies that the host does not wait for.

Shapes: B rows, T positions, L blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from gpt_data.batch import Batch
from gpt_data.checks import check_batch
from gpt_trainer.model_config import ModelConfig
from jaxtyping import Num, UInt32
from torch import Tensor

from gpt_triton.model import Inputs


def upload(target: Num[Tensor, "*n"], source: Num[np.ndarray, "*n"]) -> None:
    """Copy an array of its own into a device tensor of the same dtype; on a GPU the host does not wait.

    The pinned copy may be dropped at once: torch's host allocator reuses it only after the copy is done.
    """
    host = torch.from_numpy(source)
    if target.is_cuda:
        target.copy_(host.pin_memory(), non_blocking=True)
    else:
        target.copy_(host)


def send(source: Num[np.ndarray, "*n"], device: torch.device) -> Num[Tensor, "*n"]:
    """A copy on the device; on a GPU the host does not wait."""
    host = torch.from_numpy(source)
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.clone()


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

    Raises:
        ValueError: If a value is out of range.
    """
    check_batch(batch, context=config.context, vocab_size=config.vocab_size)
    loaded = MicroBatch(batch.tokens.shape, batch.segment_starts is not None, config.n_layer, device)
    loaded.fill(batch, None, 1.0)
    if batch.prefix_lengths is not None:
        prefix_lengths = send(batch.prefix_lengths, device)
        loaded.inputs = loaded.inputs._replace(prefix_lengths=prefix_lengths)
    return loaded
