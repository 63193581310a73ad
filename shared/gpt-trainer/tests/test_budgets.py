"""Runs that end after so many tokens or minutes: the learning rate knows the end, and a resume counts on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gpt_trainer.checkpoint import find_steps, load_checkpoint
from gpt_trainer.ranks.peers import Alone
from gpt_trainer.report.metrics import TIMING_FIELDS, read_metrics
from gpt_trainer.run.loop import Loop
from gpt_trainer.run.pace import FirstStep, Pace
from gpt_trainer.run.record import RunState
from gpt_trainer.settings.sections import UNKNOWN, LengthSection
from gpt_trainer_runs import Capture, Train, pretend_gpu
from gpt_trainer_toy import ToyBackend

SECONDS = 12
MINUTES = f"--minutes={SECONDS / 60}"
PEAK, FLOOR = 0.01, 0.001


class Clock:
    """A step takes a second and an evaluation a hundred; what else happens takes none."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock, step, evaluate = Clock(), ToyBackend.train_step, ToyBackend.evaluate

    def train_step(self: ToyBackend, *given: Any, **bound: float) -> Any:
        clock.now += 1.0
        return step(self, *given, **bound)

    def evaluate_slowly(self: ToyBackend, batch: Any) -> tuple[float, int]:
        clock.now += 100.0
        return evaluate(self, batch)

    monkeypatch.setattr(ToyBackend, "train_step", train_step)
    monkeypatch.setattr(ToyBackend, "evaluate", evaluate_slowly)
    monkeypatch.setattr("gpt_trainer.report.stopwatch.time", clock)
    return clock


def lines(run: Path) -> list[dict[str, Any]]:
    found = read_metrics(run / "metrics.jsonl")
    return [{name: line[name] for name in line if name not in TIMING_FIELDS} for line in found]


def rates(run: Path) -> list[float]:
    return [line["lr"] for line in lines(run) if "lr" in line]


def test_so_many_tokens_are_so_many_steps(train: Train, flags: list[str], tmp_path: Path) -> None:
    """The last one is begun if a single token is missing."""
    assert train(*flags, "--out=steps", "--steps=10") == 0
    assert train(*flags, "--out=tokens", f"--train-tokens={9 * 64 + 1}") == 0
    assert lines(tmp_path / "tokens") == lines(tmp_path / "steps")


# numbers that are read late let one step more begin
@pytest.mark.parametrize(("overlap", "steps"), [(False, SECONDS + 1), (True, SECONDS + 2)])
def test_minutes_are_those_of_steps_but_the_first(
    clock: Clock, train: Train, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    overlap: bool, steps: int,
) -> None:  # fmt: skip
    pretend_gpu(monkeypatch, gpu=overlap)
    assert train(*flags, "--out=run", MINUTES) == 0
    found = rates(tmp_path / "run")
    assert len(found) == steps
    assert [line["step"] for line in lines(tmp_path / "run") if "val_loss" in line][-1] == steps
    # the pace is even: from the peak on the rate falls as if the end had been known
    assert max(found) == pytest.approx(PEAK)
    fall = found[found.index(max(found)) :]
    assert fall == sorted(fall, reverse=True)
    # of so few steps the first, which does not count, is one in twelve
    assert FLOOR <= fall[-1] < 2.0 * FLOOR


@pytest.mark.parametrize("overlap", [False, True])
def test_a_profile_takes_no_time_of_the_steps(
    clock: Clock, train: Train, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    overlap: bool,
) -> None:  # fmt: skip
    """Its beginning and the writing of its trace were once counted as the steps beside them."""
    profile = ToyBackend.profile

    @contextmanager
    def slow(self: ToyBackend, folder: Path) -> Iterator[ToyBackend]:
        clock.now += 1000.0
        with profile(self, folder) as found:
            yield found
        clock.now += 1000.0

    monkeypatch.setattr(ToyBackend, "profile", slow)
    pretend_gpu(monkeypatch, gpu=overlap)
    assert train(*flags, "--out=run", "--profile=2") == 0
    found = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["seconds"] for line in found if "loss" in line] == [1.0] * 12


# on a GPU the evaluation mostly compiles, and tells nothing of a step
@pytest.mark.parametrize(("overlap", "told"), [(False, True), (True, False)])
def test_a_long_step_is_foretold_by_the_evaluation_before_it(
    clock: Clock, train: Train, flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture,
    overlap: bool, told: bool,
) -> None:  # fmt: skip
    """Two batches of 32 tokens take 200 seconds: a step of 64 tokens will take three times as long."""
    pretend_gpu(monkeypatch, gpu=overlap)
    assert train(*flags, "--out=run", "--steps=1", "--plain") == 0
    assert (
        "a step will take about 0:10:00, by the pace of the evaluation" in capsys.readouterr().out
    ) == told


def test_only_a_long_evaluation_with_targets_foretells_a_step() -> None:
    for seconds, targets, told in ((9.0, 8, 0), (1000.0, 0, 0), (12.0, 8, 1)):
        first, said = FirstStep(), list[str]()
        first.measured(seconds, targets)
        first.foretell(4096, said.append)
        assert len(said) == told, (seconds, targets)


def test_stopped_and_resumed_it_counts_on(
    clock: Clock, train: Train, flags: list[str], tmp_path: Path
) -> None:
    assert train(*flags, "--out=cut", MINUTES, fault="sigterm:5") == 75
    state = load_checkpoint(find_steps(tmp_path / "cut")[-1][1]).trainer["state"]
    assert (state["seconds"], state["tokens"]) == (5.0, 6 * 64)
    assert train("--resume=cut") == 0
    found = rates(tmp_path / "cut")
    # each of the two processes had a first step
    assert len(found) == SECONDS + 2
    assert all(rate < 1.01 * PEAK for rate in found)
    assert train("--resume=cut") == 0
    assert rates(tmp_path / "cut") == found


def test_a_run_whose_steps_decide_keeps_nothing_of_its_speed(
    train: Train, flags: list[str], tmp_path: Path
) -> None:
    assert train(*flags, "--out=run") == 0
    state = load_checkpoint(find_steps(tmp_path / "run")[-1][1]).trainer["state"]
    assert not {"seconds", "tokens"} & state.keys()


def test_an_extended_run_says_what_becomes_of_its_rate(
    clock: Clock, train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert train(*flags, "--out=run", MINUTES) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    longer = f"--minutes {2 * SECONDS / 60:g} --schedule-steps {SECONDS + 1}"
    assert last.endswith(f"gpt-toy-train --resume run {longer}")
    assert train("--resume=run", *longer.split()) == 0
    assert "learning rate" not in capsys.readouterr().err
    after = rates(tmp_path / "run")[SECONDS + 1 :]
    assert (len(after), set(after)) == (SECONDS + 1, {FLOOR})
    assert train("--resume=run", f"--minutes={4 * SECONDS / 60}", "--schedule-steps=99") == 0
    said = capsys.readouterr().err
    assert "the learning rate goes on at " in said
    assert f"as --minutes {4 * SECONDS / 60:g} stretches its course" in said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--minutes=1", "--train-tokens=9"], "minutes=1.0 and train_tokens=9: give one of them"),
        (["--minutes=0"], "minutes=0.0 is not positive"),
        (["--minutes=inf"], "minutes=inf is not positive and finite"),
        (["--train-tokens=-1"], "train_tokens=-1 is not positive"),
    ],
)
def test_lengths_that_are_none(
    train: Train, flags: list[str], capsys: Capture, given: list[str], said: str
) -> None:
    assert train(*flags, *given) == 65
    assert said in capsys.readouterr().err


def test_all_processes_go_by_the_clock_of_the_first() -> None:
    class Second(Alone):
        def first(self, value: Any, what: str) -> Any:
            return 7.5

    loop = object.__new__(Loop)
    loop.state, loop.peers = RunState(step=3, seconds=99.0), Second()
    loop.pace = Pace(LengthSection(1, minutes=0.5), 0, lambda step, end: 0.0)
    # a quarter of the time is over
    assert loop._reckon() == 12
    assert loop.state.seconds == 7.5


def test_the_end_is_told_from_the_mean_pace() -> None:
    length = LengthSection(steps=5, minutes=1.0)
    assert length.end(0, 0, 0.0) == UNKNOWN
    assert length.end(10, 0, 6.0) == 100
    assert length.end(7, 0, 59.9) == 8
    assert length.end(7, 0, 60.0) == 7
    assert LengthSection(steps=5).end(10, 99, 99.0) == 5
    assert LengthSection(steps=5, train_tokens=1000).end(3, 300, 9.0) == 10
    # 1 / (1 / 49) is more than 49 in floating point, and what is as good as spent has one step more
    assert LengthSection(steps=5, train_tokens=49 * 64).end(1, 64, 9.0) == 49
    assert length.end(7, 0, 60.0 - 1e-9) == 8
