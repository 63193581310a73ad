"""Launches recorded once and repeated by the device: CUDA graphs.

A micro-batch of a small model is some thousand launches, which take the host longer than the device. A
graph of them is one launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

Shapes = tuple[torch.Size | None, ...]
T = TypeVar("T")


class Recording(NamedTuple):
    """What a graph reads, the graph, and what it writes."""

    arguments: list[Tensor | None]
    graph: torch.cuda.CUDAGraph
    result: Any


class Replay(Generic[T]):
    """A function of tensors, recorded at its second call with the same shapes.

    The first call runs as it is: functions are compiled then, and libraries set themselves up, which a
    recording must not see. What the function reads beside its arguments must stay where it is. From the
    second call on, results are where those of the call before were.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._recorded: dict[Shapes, Recording | None] = {}
        self._pool: Any = None

    def __call__(self, *tensors: Tensor | None) -> T:
        """Run, record or repeat.

        Args:
            tensors: Arguments on the device, or ``None``.
        """
        shapes = tuple(None if tensor is None else tensor.shape for tensor in tensors)
        if shapes not in self._recorded:
            self._recorded[shapes] = None
            return self._function(*tensors)
        held, graph, result = self._recorded[shapes] or self._record(shapes, tensors)
        for buffer, tensor in zip(held, tensors, strict=True):
            if buffer is not None and tensor is not None:
                buffer.copy_(tensor)
        graph.replay()
        return result  # type: ignore[no-any-return]

    def _record(self, shapes: Shapes, tensors: tuple[Tensor | None, ...]) -> Recording:
        held = [None if tensor is None else tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        # one pool for all: no two of them run at the same time
        with torch.cuda.graph(graph, pool=self._pool):
            result = self._function(*held)
        self._pool = graph.pool()
        self._recorded[shapes] = recording = Recording(held, graph, result)
        return recording
