"""How much of a tensor an op handles at once, and in which precision it accumulates."""

from __future__ import annotations

import torch
from torch import Tensor

# elements of one tile: on a CPU a float32 tile and its scratch stay in a core's second-level cache; on a
# GPU, where each tile costs launches, tiles only bound the memory
CPU_TILE = 1 << 18
GPU_TILE = 1 << 26


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float32 for bfloat16 and float32, float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def rows_per_tile(x: Tensor, row_elements: int) -> int:
    """Rows of ``row_elements`` elements that one tile holds on the device of ``x``; at least one."""
    budget = CPU_TILE if x.device.type == "cpu" else GPU_TILE
    return max(1, budget // row_elements)
