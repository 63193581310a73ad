"""What the log says a step took, on a device that the host waits for in one of two places."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from gpt_data.batch import Batch
from gpt_trainer.backend import StepMetrics
from gpt_trainer.report.metrics import read_metrics
from gpt_trainer_runs import Train, pretend_gpu
from gpt_trainer_toy import ToyBackend


class Device:
    """Takes a second for each step, on a clock that only it and the evaluations move."""

    def __init__(self, *, launch_waits: bool) -> None:
        self.now, self.free, self.launch_waits = 0.0, 0.0, launch_waits

    def perf_counter(self) -> float:
        return self.now

    def launch(self) -> float:
        """When the step launched now is done."""
        self.free = max(self.free, self.now) + 1.0
        if self.launch_waits:
            self.now = self.free
        return self.free


class Waiting:
    """Metrics that are there when the device has come to them."""

    def __init__(self, device: Device, done: float, metrics: StepMetrics) -> None:
        self.device, self.done, self.metrics = device, done, metrics

    def fetch(self) -> StepMetrics:
        self.device.now = max(self.device.now, self.done)
        return self.metrics


# with launches that wait, a step before a pause was once said to take no time, and one after it two seconds
@pytest.mark.parametrize("launch_waits", [False, True], ids=["metrics", "launch"])
@pytest.mark.parametrize("overlap", [False, True], ids=["cpu", "gpu-like"])
def test_every_step_is_said_to_take_what_it_took(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launch_waits: bool,
    overlap: bool,
) -> None:
    device = Device(launch_waits=launch_waits)
    step, evaluate = ToyBackend.train_step, ToyBackend.evaluate

    def train_step(self: ToyBackend, *given: Sequence[Batch], **bound: float) -> Waiting:
        return Waiting(device, device.launch(), step(self, *given, **bound).fetch())  # type: ignore[arg-type]

    def evaluate_slowly(self: ToyBackend, batch: Batch) -> tuple[float, int]:
        device.now += 100.0
        return evaluate(self, batch)

    monkeypatch.setattr(ToyBackend, "train_step", train_step)
    monkeypatch.setattr(ToyBackend, "evaluate", evaluate_slowly)
    monkeypatch.setattr("gpt_trainer.report.stopwatch.time", device)
    pretend_gpu(monkeypatch, gpu=overlap)
    # pauses after steps 4, 6, 8 and 12
    assert train(*flags, "--out=run", "--save-every=6") == 0
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert [line["seconds"] for line in lines] == [1.0] * 12
    assert {line["tokens_per_second"] for line in lines} == {64.0}
