"""CUDA graphs: a sequence of launches recorded once and replayed, at the cost of one launch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gpt_triton.compiling import launch_compiled


class Recorder:
    """Records launches; its graphs share one memory pool, as no two of them hold results at a time."""

    def __init__(self) -> None:
        self._pool: Any = torch.cuda.graph_pool_handle()

    def record(self, launch: Callable[[], None]) -> Callable[[], None]:
        """Run ``launch``, then record it; the result replays it.

        The run comes first because kernels are compiled, and libraries set up, at their first launch,
        which a recording does not allow. Recording itself executes nothing. ``launch`` is called up to three
        times, the first time perhaps without its kernels.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            launch_compiled(launch)
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # only this thread's calls count as part of the recording: a data thread may pin memory meanwhile
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            launch()
        replay: Callable[[], None] = graph.replay
        return replay


class Replay:
    """A function of a tensor of one shape, recorded at its first call.

    What it reads beside its argument must stay where it is; its result is where that of the call before was.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function
        self._launch: Callable[[], None] | None = None

    def __call__(self, argument: Tensor) -> Tensor:
        """Record, if it is the first call; then repeat."""
        if self._launch is None:
            self._argument = argument.clone()
            # a pool ends with the last of its graphs, and this one may go any time
            self._launch = Recorder().record(self._run)
        self._argument.copy_(argument)
        self._launch()
        return self._result

    def _run(self) -> None:
        self._result = self._function(self._argument)
