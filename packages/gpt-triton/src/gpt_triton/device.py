"""Where the model runs, and what this machine has."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch
from gpt_trainer.machine import cpu_name, peak_process_bytes


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
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def peak_memory_bytes(device: torch.device) -> int:
    """Highest memory allocated on a GPU since the start; the process's peak on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_process_bytes()


def library_versions() -> dict[str, str]:
    """Versions of torch and, where it is installed, Triton."""
    versions: dict[str, str] = {"torch": str(torch.__version__)}
    try:
        versions["triton"] = version("triton")
    except PackageNotFoundError:
        versions["triton"] = "not installed"
    return versions
