"""Launches recorded once and repeated by the device, as CUDA graphs, for the backends that have torch.

A micro-batch of a small model is some thousand launches, which take the host longer than the device. A
graph of them is one launch.
"""

from __future__ import annotations

import gc
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
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

    The first call runs as it is: kernels are compiled then, and libraries set themselves up, which a
    recording must not see. What the function reads beside its arguments must stay where it is. From the
    second call on, results are where those of the call before were.

    Args:
        records: If not, every call runs as it is.
        first: Makes the first call.
        beside: Another whose memory is used too: no two of them run at a time, or hold results meanwhile.
    """

    def __init__(
        self,
        function: Callable[..., T],
        *,
        records: bool,
        first: Callable[[Callable[[], T]], T] = operator.call,
        beside: Replay[Any] | None = None,
    ) -> None:
        self._function, self._records, self._first = function, records, first
        self._recorded: dict[Shapes, Recording | None] = {}
        self._graphs: list[torch.cuda.CUDAGraph] = [] if beside is None else beside._graphs

    def prepare(self, *tensors: Tensor | None) -> None:
        """Make the first call with these shapes, where it is not to count and calls are recorded."""
        if self._records:
            self(*tensors)

    def __call__(self, *tensors: Tensor | None) -> T:
        """Run, record or repeat.

        Args:
            tensors: Arguments on the device, or ``None``.
        """
        if not self._records:
            return self._function(*tensors)
        shapes = _shapes(tensors)
        if shapes not in self._recorded:
            self._recorded[shapes] = None
            return self._first(partial(self._function, *tensors))
        held, graph, result = self._recorded[shapes] or self._record(shapes, tensors)
        for buffer, tensor in zip(held, tensors, strict=True):
            if buffer is not None and tensor is not None:
                buffer.copy_(tensor)
        graph.replay()
        return result  # type: ignore[no-any-return]

    def _record(self, shapes: Shapes, tensors: tuple[Tensor | None, ...]) -> Recording:
        held = [None if tensor is None else tensor.clone() for tensor in tensors]
        graph = torch.cuda.CUDAGraph()
        # a pool ends with the last of its graphs
        pool = self._graphs[-1].pool() if self._graphs else None
        # only this thread's calls are part of the recording: another may pin memory meanwhile
        with _no_collection(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = self._function(*held)
        self._graphs.append(graph)
        self._recorded[shapes] = recording = Recording(held, graph, result)
        return recording


@contextmanager
def _no_collection() -> Iterator[None]:
    """Within, nothing goes that only the collector frees: the end of an older graph voids a recording."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def _shapes(tensors: tuple[Tensor | None, ...]) -> Shapes:
    return tuple(None if tensor is None else tensor.shape for tensor in tensors)
