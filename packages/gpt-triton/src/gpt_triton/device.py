"""Where the model runs, and what this machine has."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def has_gpu() -> bool:
    """Whether torch sees a GPU that Triton compiles for."""
    return torch.cuda.is_available()


def choose_device(name: str) -> torch.device:
    """The device for ``Runtime.device``; ``"auto"`` takes a GPU if there is one.

    Raises:
        ValueError: If the name is unknown, or a GPU is asked for and there is none.
    """
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device={name!r} is not one of auto, cpu, gpu")
    if name == "gpu" and not has_gpu():
        raise ValueError("device='gpu', but torch finds no CUDA device; use device='cpu'")
    on_gpu = name != "cpu" and has_gpu()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def device_name(device: torch.device) -> str:
    """The device as its vendor names it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory that torch allocated on a GPU; the process's peak on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # kilobytes, except on macOS
    return peak if sys.platform == "darwin" else peak * 1024


def library_versions() -> dict[str, str]:
    """Versions of torch and, where it is installed, Triton."""
    versions: dict[str, str] = {"torch": str(torch.__version__)}
    try:
        versions["triton"] = version("triton")
    except PackageNotFoundError:
        versions["triton"] = "not installed"
    return versions
