"""What the log says a step took, on a device that the host waits for in one of two places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiayn_jax.commands import train_main
from aiayn_jax.runs.engine import Engine
from aiayn_runs import TINY, write_pairs
from gpt_trainer.report.metrics import read_metrics


class Device:
    """Takes a second for each step, on a clock that only it and the evaluations move."""

    def __init__(self, *, launch_waits: bool) -> None:
        self.now, self.free, self.launch_waits = 0.0, 0.0, launch_waits

    def perf_counter(self) -> float:
        return self.now

    def launch(self) -> Waiting:
        self.free = max(self.free, self.now) + 1.0
        if self.launch_waits:
            self.now = self.free
        return Waiting(self, self.free)


class Waiting:
    """Metrics that are there when the device has come to them."""

    def __init__(self, device: Device, done: float) -> None:
        self.device, self.done = device, done

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self.device.now = max(self.device.now, self.done)
        return np.array([2.0, 2.0, 1.0, 1.0], dtype)


# with launches that wait, a step before a pause would take no time, and one after it two seconds, if the
# clock were looked at when metrics are read alone
@pytest.mark.parametrize("launch_waits", [False, True], ids=["metrics", "launch"])
@pytest.mark.parametrize("overlap", [False, True], ids=["cpu", "gpu-like"])
def test_every_step_is_said_to_take_what_it_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launch_waits: bool, overlap: bool
) -> None:
    device = Device(launch_waits=launch_waits)

    def evaluate_slowly(self: Engine, batch: Any) -> tuple[float, int]:
        device.now += 100.0
        return 2.0, 1

    monkeypatch.setattr(Engine, "train_step", lambda self, batch, lr, step: device.launch())
    monkeypatch.setattr(Engine, "evaluate", evaluate_slowly)
    monkeypatch.setattr("gpt_trainer.report.stopwatch.time", device)
    monkeypatch.setattr("aiayn_jax.runs.training.on_gpu", lambda runtime: overlap)
    # pauses after steps 3, 6, 9 and 12
    given = [*TINY, "--precision=float32", "--score-pairs=0", f"--data={write_pairs(tmp_path)}"]
    assert train_main([*given, f"--out={tmp_path / 'run'}"]) == 0
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["seconds"] for line in lines] == [1.0] * 12
