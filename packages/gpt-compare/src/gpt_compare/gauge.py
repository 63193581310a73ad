"""What the device itself tells besides the trainers: joules used so far, and what makes a comparison unfair.

An NVIDIA driver counts a GPU's energy (NVML), a CPU that of its packages (RAPL, which Linux often keeps
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
    """Asks NVML about the GPU that competitors train on: the first that CUDA shows them.

    NVML lists every GPU of the machine by its place on the bus, whatever ``CUDA_VISIBLE_DEVICES`` says.

    Raises:
        pynvml.NVMLError: If there is no driver, or no such GPU.
    """

    def __init__(self) -> None:
        pynvml.nvmlInit()
        self._name = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
        self._gpu: Any = (
            pynvml.nvmlDeviceGetHandleByIndex(int(self._name))
            if self._name.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(self._name)
        )

    def joules(self) -> float | None:
        """NVML counts millijoules."""
        try:
            return 1e-3 * float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu))
        except pynvml.NVMLError:
            return None

    def disturbances(self) -> list[str]:
        """Also other processes on the GPU."""
        found = super().disturbances()
        try:
            others = len(pynvml.nvmlDeviceGetComputeRunningProcesses(self._gpu))
        except pynvml.NVMLError:
            return found
        if others:
            found.append(f"other processes used GPU {self._name} before the first began: {others}")
        return found

    def throttled(self) -> bool:
        """Heat and failing supply; the limit of power, which every large product meets, is not among them."""
        slow = pynvml.nvmlClocksThrottleReasonSwThermalSlowdown | pynvml.nvmlClocksThrottleReasonHwSlowdown
        try:
            return bool(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._gpu) & slow)
        except pynvml.NVMLError:
            return False


def driver_version() -> str | None:
    """NVIDIA's driver, if it answers."""
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None


def gauge_of(device: str) -> Gauge:
    """The gauge of ``gpu`` or ``cpu``."""
    if device != "gpu":
        return CpuGauge()
    try:
        return GpuGauge()
    except pynvml.NVMLError:
        return Gauge()
