"""Who is asked for joules: the GPU that competitors train on, and no other; of a CPU each package once."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest
from gpt_compare import gauge
from gpt_compare.gauge import driver_version, gauge_of

MILLIJOULES = {"GPU-a": 1000, "GPU-b": 7000}
PROCESSES = {"GPU-a": [], "GPU-b": [SimpleNamespace(pid=1)]}


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML of a machine with two GPUs, of which somebody uses the second, and heat slows it."""
    names = list(MILLIJOULES)
    hot = pynvml.nvmlClocksThrottleReasonHwSlowdown
    doubles = {
        "nvmlInit": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: "580.95.05",
        "nvmlDeviceGetCount": lambda: len(names),
        "nvmlDeviceGetHandleByIndex": names.__getitem__,
        "nvmlDeviceGetHandleByUUID": lambda name: names[names.index(name)],
        "nvmlDeviceGetTotalEnergyConsumption": MILLIJOULES.__getitem__,
        "nvmlDeviceGetComputeRunningProcesses": PROCESSES.__getitem__,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda gpu: hot if gpu == "GPU-b" else 0,
    }
    for name, double in doubles.items():
        monkeypatch.setattr(pynvml, name, double)


def test_a_cpus_joules_are_those_of_its_packages_and_not_of_their_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, microjoules in (("0", 3_000_000), ("0:0", 2_000_000), ("0:1", 500_000), ("1", 4_000_000)):
        (tmp_path / f"intel-rapl:{name}").mkdir()
        (tmp_path / f"intel-rapl:{name}" / "energy_uj").write_text(f"{microjoules}\n")
    monkeypatch.setattr(gauge, "RAPL", tmp_path)
    assert gauge_of("cpu").joules() == pytest.approx(7.0)
    monkeypatch.setattr(gauge, "RAPL", tmp_path / "none")
    assert gauge_of("cpu").joules() is None


@pytest.mark.parametrize(("load", "told"), [(4.0, 0), (4.5, 1)])
def test_a_load_above_the_cores_is_told(monkeypatch: pytest.MonkeyPatch, load: float, told: int) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert len(gauge_of("cpu").disturbances()) == told


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
    asked = gauge_of("gpu")
    assert asked.joules() == pytest.approx(joules)
    second = joules > 1.0
    assert asked.throttled() == second
    assert any("other processes" in line for line in asked.disturbances()) == second


def test_the_driver_is_told_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    assert driver_version() == "580.95.05"
    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert driver_version() is None
