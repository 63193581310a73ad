"""Where the model runs, and the settings of JAX that decide its numbers.

Everything here is set when a backend is created, from its ``Runtime`` and options; nothing happens on
import. JAX starts its platforms once in a process, at the first question for a device: what is set
after that comes too late, and ``choose_devices`` says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path

import jax
from gpt_trainer.machine import cpu_name, driver_sees_gpu, peak_process_bytes

PREALLOCATE = "XLA_PYTHON_CLIENT_PREALLOCATE"
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def has_gpu() -> bool:
    """Whether JAX can use a CUDA device here; asks the driver, not JAX, which would start its platforms."""
    return any(importlib.util.find_spec(name) for name in PLUGINS) and driver_sees_gpu()


def choose_devices(name: str, count: int = 1, *, preallocate: bool) -> list[jax.Device]:
    """The first devices of each process for ``Runtime.device``; ``"auto"`` takes GPUs if there are any.

    A run on the CPU starts JAX's CPU platform alone, so that it neither touches a GPU nor warns of one.
    A CPU counts as one device, or as so many as it is told to be before JAX has started.

    Args:
        count: Devices of each process.

    Raises:
        ValueError: If the name is unknown, or this process has fewer devices of the kind.
    """
    platform = _start_platform(name, count, preallocate=preallocate)
    if len(jax.local_devices(backend=platform)) < count:
        have = len(jax.local_devices(backend=platform))
        raise ValueError(f"devices={count}: JAX has {have} of platform {platform!r} in this process")
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices(platform):
        by_process.setdefault(device.process_index, []).append(device)
    return [device for _, own in sorted(by_process.items()) for device in own[:count]]


def _start_platform(name: str, count: int, *, preallocate: bool) -> str:
    """Which of JAX's platforms it is, started."""
    if name not in ("auto", "cpu", "gpu"):
        raise ValueError(f"device={name!r} is not one of auto, cpu, gpu")
    if name == "gpu" and not has_gpu():
        needed = "an NVIDIA GPU and the extra gpt-jax[cuda12] or gpt-jax[cuda13]"
        raise ValueError(f"device='gpu' needs {needed}, not found here; use device='cpu'")
    if name == "cpu" or not has_gpu():
        jax.config.update("jax_platforms", "cpu")
        if count > 1:
            # too late where JAX has started: then it has the devices that it has
            with contextlib.suppress(RuntimeError):
                jax.config.update("jax_num_cpu_devices", count)
        return "cpu"
    os.environ[PREALLOCATE] = "true" if preallocate else "false"
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        # a step unrolled over a dozen blocks takes half a minute to compile, and a second to read
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        # small programs are many: a start compiles for half a second without them
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        jax.devices("cuda")
    except RuntimeError as error:
        raise ValueError(f"device={name!r}: JAX cannot start CUDA ({error}); use device='cpu'") from error
    return "cuda"


def cache_folder() -> Path:
    """Where JAX keeps what it compiled for a GPU, unless the user named another place."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gpt-jax"


def compiler_options(
    device: jax.Device, *, deterministic: bool, several: bool = False
) -> dict[str, bool | str]:
    """Options for every ``jax.jit``.

    Args:
        several: For a program of several devices: what they send each other is sent while they compute.
    """
    if device.platform != "gpu":
        return {}
    options: dict[str, bool | str] = {}
    if deterministic:
        options |= {"xla_gpu_deterministic_ops": True, "xla_gpu_enable_triton_gemm": False}
    if several:
        options |= {"xla_gpu_enable_latency_hiding_scheduler": True}
    return options


def device_name(device: jax.Device) -> str:
    """The device as its vendor names it."""
    return cpu_name() if device.platform == "cpu" else device.device_kind


def peak_memory_bytes(device: jax.Device) -> int:
    """Highest memory allocated on a GPU since the start; the process's peak on a CPU."""
    if device.platform == "cpu":
        return peak_process_bytes()
    return int(device.memory_stats()["peak_bytes_in_use"])
