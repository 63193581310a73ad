"""Which GPU is asked for its joules: the one that competitors train on, and no other."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest
from gpt_compare.gauge import gauge_of

MILLIJOULES = {"GPU-a": 1000, "GPU-b": 7000}
PROCESSES = {"GPU-a": [], "GPU-b": [SimpleNamespace(pid=1)]}


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML of a machine with two GPUs, of which somebody uses the second, and heat slows it."""
    names = list(MILLIJOULES)
    hot = pynvml.nvmlClocksThrottleReasonHwSlowdown
    doubles = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(names),
        "nvmlDeviceGetHandleByIndex": names.__getitem__,
        "nvmlDeviceGetHandleByUUID": lambda name: names[names.index(name)],
        "nvmlDeviceGetTotalEnergyConsumption": MILLIJOULES.__getitem__,
        "nvmlDeviceGetComputeRunningProcesses": PROCESSES.__getitem__,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: hot if gpu == "GPU-b" else 0,
    }
    for name, double in doubles.items():
        monkeypatch.setattr(pynvml, name, double)


@pytest.mark.parametrize(
    ("visible", "joules"), [(None, 1.0), ("", 1.0), ("0", 1.0), ("1", 7.0), ("1,0", 7.0), ("GPU-b", 7.0)]
)
def test_another_gpu_is_none_of_its_business(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, joules: float
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gauge = gauge_of("gpu")
    assert gauge.joules() == pytest.approx(joules)
    second = joules > 1.0
    assert gauge.throttled() == second
    assert any("other processes" in line for line in gauge.disturbances()) == second
