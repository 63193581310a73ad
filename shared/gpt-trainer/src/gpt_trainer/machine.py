"""What a backend says of a CPU: its name, and the memory that the process has held."""

from __future__ import annotations

import platform
import resource
import sys
from pathlib import Path


def cpu_name() -> str:
    """The processor as its vendor names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def peak_process_bytes() -> int:
    """The most memory that this process has held at a time."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux KiB
    return peak if sys.platform == "darwin" else peak * 1024
