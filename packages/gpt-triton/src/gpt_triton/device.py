"""Which device, which ops and which dtype a run gets, and what this machine has."""

from __future__ import annotations

import importlib
import os
import platform
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

import torch
from gpt_trainer.backend import Runtime

from gpt_triton.options import Kernels


def has_gpu() -> bool:
    """Whether torch sees a GPU that Triton compiles for."""
    return torch.cuda.is_available()


def choose_device(runtime: Runtime) -> torch.device:
    """The device that ``runtime`` asks for.

    Raises:
        ValueError: If a GPU is asked for and there is none.
    """
    if runtime.device == "gpu" and not has_gpu():
        raise ValueError("device='gpu', but torch sees no GPU on this machine; choose 'cpu' or 'auto'")
    on_gpu = runtime.device != "cpu" and has_gpu()
    return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")


def choose_ops(kernels: Kernels, device: torch.device) -> tuple[str, ModuleType]:
    """The name and the module of the ops to run.

    Raises:
        ValueError: If Triton kernels are asked for where they cannot run.
    """
    if kernels == "auto":
        kernels = "triton" if device.type == "cuda" else "reference"
    if kernels == "reference":
        return kernels, importlib.import_module("gpt_triton.reference")
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "kernels='triton' needs a GPU; on a CPU choose 'reference' or 'auto', or set TRITON_INTERPRET=1 "
            "to run the kernels in Triton's (very slow) interpreter"
        )
    return kernels, importlib.import_module("gpt_triton.kernels")


def compute_dtype(runtime: Runtime) -> torch.dtype:
    """Dtype of activations and of the matrices in products."""
    return torch.bfloat16 if runtime.precision == "bfloat16" else torch.float32


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
