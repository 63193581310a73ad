"""A stretch of training under torch's own profiler, for the backends that have torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gpt_trainer.report.recording import ROWS, Recording

NAME_CHARACTERS = 60
"""Kernels that a compiler named are longer."""


@contextmanager
def record(folder: Path, device: torch.device) -> Iterator[Recording]:
    """Record until the block ends, then write ``trace.json`` (Chrome's trace format) into ``folder``."""
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    recording = Recording()
    folder.mkdir(parents=True, exist_ok=True)
    # one cycle is all there is, and torch before 2.12 warns that others would be lost
    with profile(activities=activities, acc_events=True) as profiler:
        yield recording
        if gpu:
            torch.cuda.synchronize(device)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    order = "self_device_time_total" if gpu else "self_cpu_time_total"
    averages = profiler.key_averages()
    recording.fill(averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=NAME_CHARACTERS))
