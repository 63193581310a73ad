"""What this machine is, no framework asked: its CPU's name, the memory held so far, whether it has a GPU."""

from __future__ import annotations

import ctypes
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


def driver_sees_gpu() -> bool:
    """Whether CUDA's driver is there and counts a device; no framework is asked."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
