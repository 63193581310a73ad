"""What the device itself tells besides the trainers: joules used so far, and what makes a comparison unfair.

An NVIDIA driver counts its GPUs' energy (NVML), a CPU that of its packages (RAPL, which Linux often keeps
from ordinary users): all of the device, whoever uses it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pynvml

RAPL = Path("/sys/class/powercap")


class Gauge:
    """A device without a counter, and the face of those that have one."""

    def joules(self) -> float | None:
        """Used since some fixed moment; ``None`` where nothing counts."""
        return None

    def disturbances(self) -> list[str]:
        """Who else uses the device before the comparison begins: a line each."""
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        return [f"the load was {load:.1f} on {cores} cores before the first began"] if load > cores else []

    def throttled(self) -> bool:
        """Whether the device runs slower than it could for heat, or for power from outside."""
        return False


class CpuGauge(Gauge):
    """Reads RAPL, in microjoules; ``intel-rapl:0`` is a package, ``intel-rapl:0:1`` a part of it."""

    def __init__(self) -> None:
        folders = [path for path in sorted(RAPL.glob("*-rapl:*")) if path.name.count(":") == 1]
        self._counters = [path / "energy_uj" for path in folders]

    def joules(self) -> float | None:
        """Of all packages; the counters begin again at zero after some hours, which a figure leaves out."""
        try:
            return 1e-6 * sum(int(file.read_text()) for file in self._counters) if self._counters else None
        except (OSError, ValueError):
            return None


class GpuGauge(Gauge):
    """Asks NVML about all GPUs that it lists.

    Raises:
        pynvml.NVMLError: If there is no driver.
    """

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._gpus: list[Any] = [
            pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())
        ]

    def joules(self) -> float | None:
        """Of all GPUs; NVML counts millijoules."""
        try:
            return 1e-3 * sum(map(pynvml.nvmlDeviceGetTotalEnergyConsumption, self._gpus))
        except pynvml.NVMLError:
            return None

    def disturbances(self) -> list[str]:
        """Also other processes on a GPU."""
        found = super().disturbances()
        for index, gpu in enumerate(self._gpus):
            try:
                others = len(pynvml.nvmlDeviceGetComputeRunningProcesses(gpu))
            except pynvml.NVMLError:
                continue
            if others:
                found.append(f"{others} other processes used GPU {index} before the first began")
        return found

    def throttled(self) -> bool:
        """Heat and failing supply; the limit of power, which every large product meets, is not among them."""
        slow = pynvml.nvmlClocksThrottleReasonSwThermalSlowdown | pynvml.nvmlClocksThrottleReasonHwSlowdown
        try:
            reasons = [pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(gpu) for gpu in self._gpus]
        except pynvml.NVMLError:
            return False
        return any(reason & slow for reason in reasons)


def gauge_of(device: str) -> Gauge:
    """The gauge of ``gpu`` or ``cpu``."""
    if device != "gpu":
        return CpuGauge()
    try:
        return GpuGauge()
    except pynvml.NVMLError:
        return Gauge()
