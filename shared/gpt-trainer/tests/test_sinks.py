"""Where a run's lines go: the standard output, the extras' sinks, a profile."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
from gpt_trainer.checkpoint import find_steps
from gpt_trainer_runs import Capture, Train, start, the_line


def test_a_closed_standard_output_does_not_end_the_training(flags: list[str], tmp_path: Path) -> None:
    run = start("train", *flags, "--log-every=1", "--steps=40", "--out=quiet", cwd=tmp_path)
    assert run.stdout is not None
    run.stdout.readline()
    run.stdout.close()
    assert run.wait(120) == 0
    assert run.stderr is not None
    assert "Error" not in run.stderr.read()
    run.stderr.close()
    assert find_steps(tmp_path / "quiet")[-1][0] == 40


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_missing_extra_is_named(
    train: Train, flags: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, {"tensorboard": "tensorboardX"}.get(name, name), None)
    assert train(*flags, f"--{name}") == 65
    assert f"--{name} needs the extra gpt-trainer[{name}]" in the_line(capsys)


def test_a_failing_sink_warns_once_and_training_goes_on(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ModuleType):
        logged = 0

        def init(self, **settings: object) -> None:
            assert settings["name"] == "logged"

        def log(self, numbers: dict[str, float], step: int) -> None:
            self.logged += 1
            if step == 3:
                raise ConnectionError("the server is gone")

        def finish(self) -> None:
            raise AssertionError("nothing is sent to a sink that failed")

    broken = Broken("wandb")
    monkeypatch.setitem(sys.modules, "wandb", broken)
    assert train(*flags, "--out=logged", "--wandb") == 0
    told = capsys.readouterr().err
    assert "wandb failed and is left out from here on: the server is gone" in told
    assert told.count("wandb failed") == 1
    # the evaluation before the first step, and three steps
    assert broken.logged == 4


@pytest.mark.slow
def test_tensorboard_files_are_written(train: Train, flags: list[str], tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    assert train(*flags, "--out=logged", "--tensorboard") == 0
    assert list((tmp_path / "logged" / "tensorboard").glob("events.*"))


def test_profile_writes_a_trace_and_prints_its_table(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert train(*flags, "--out=slow", "--profile=2") == 0
    assert (tmp_path / "slow" / "profile" / "trace.json").exists()
    assert "matmul 99 %" in capsys.readouterr().out
