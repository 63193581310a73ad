"""Evaluations that other packages bring: their flags, when they happen, and that a stopped run loses none."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpt_trainer.evaluate.extra as extra_evaluation
import pytest
from gpt_data.stopping import StopFlag
from gpt_trainer.backend import Backend
from gpt_trainer.errors import InputError
from gpt_trainer.evaluate.extra import EvaluationSpec
from gpt_trainer.report.metrics import MetricsFile, read_metrics

Train = Callable[..., int]


@dataclass(frozen=True)
class Options:
    """Flags of an evaluation that reads a weight.

    Attributes:
        eval_probe_every: Steps between.
        eval_probe_file: Must exist, if given.
    """

    eval_probe_every: int = 0
    eval_probe_file: Path | None = None


class Probe:
    """An evaluation whose metric is a function of the weights; it can be stopped at its call of a number."""

    def __init__(self) -> None:
        self.calls, self.stop_at, self.vocab = 0, -1, 0

    def prepare(self, options: Options, model: Any, tokenizer: Any) -> Any:
        if options.eval_probe_file is not None and not options.eval_probe_file.is_file():
            raise InputError(f"--eval-probe-file {options.eval_probe_file} is missing")
        self.vocab = tokenizer.vocab_size
        return self.measure

    def measure(self, backend: Backend, stop: StopFlag) -> Mapping[str, float] | None:
        self.calls += 1
        if self.calls - 1 == self.stop_at:
            stop.received = signal.SIGTERM
        if stop():
            return None
        weights = backend.export()
        return {"probe_sum": float(sum(value.sum() for value in weights.values()))}


@dataclass
class Point:
    spec: EvaluationSpec

    def load(self) -> EvaluationSpec:
        return self.spec


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> Probe:
    made = Probe()
    spec = EvaluationSpec("probe", Options, made.prepare)
    monkeypatch.setattr(extra_evaluation, "entry_points", lambda *, group: [Point(spec)])
    return made


@pytest.fixture
def nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra_evaluation, "entry_points", lambda *, group: [])


def lines(run: Path, key: str = "probe_sum") -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if key in line]


def test_it_happens_at_its_steps_and_at_the_end(
    probe: Probe, train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags, "--out=run", "--eval-probe-every=5") == 0
    found = lines(tmp_path / "run")
    assert [line["step"] for line in found] == [5, 10, 12], "weights that nobody trained tell nothing"
    assert len({line["probe_sum"] for line in found}) == 3, "the weights move"
    assert probe.vocab == 257
    assert "step 5: probe_sum " in capsys.readouterr().out
    assert train(*flags, "--out=on", "--eval-probe-every=5", "--init-from=run") == 0
    assert [line["step"] for line in lines(tmp_path / "on")] == [0, 5, 10, 12], "weights that are given do"


def test_it_does_not_happen_unasked_and_changes_nothing(
    probe: Probe, train: Train, flags: list[str], tmp_path: Path
) -> None:
    assert train(*flags, "--out=without") == 0
    assert probe.calls == 0
    assert train(*flags, "--out=with", "--eval-probe-every=5") == 0
    losses = [[line["loss"] for line in lines(tmp_path / run, "loss")] for run in ("without", "with")]
    assert losses[0] == losses[1]
    weights = [
        (tmp_path / run / "checkpoints/step-00000012/model.safetensors").read_bytes()
        for run in ("without", "with")
    ]
    assert weights[0] == weights[1]


# between checkpoints, at one, and at the end
@pytest.mark.parametrize("stop_at", [0, 1, 2, 3])
def test_a_run_stopped_within_one_goes_on_to_the_same_lines(
    probe: Probe, train: Train, flags: list[str], tmp_path: Path, stop_at: int
) -> None:
    assert train(*flags, "--out=whole", "--eval-probe-every=3") == 0
    probe.calls, probe.stop_at = 0, stop_at
    assert train(*flags, "--out=broken", "--eval-probe-every=3") == 75
    probe.stop_at = -1
    # the flag is remembered
    assert train("--resume=broken") == 0
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")
    assert lines(tmp_path / "broken", "val_loss") == lines(tmp_path / "whole", "val_loss")


def test_a_killed_run_goes_on_to_the_same_lines(
    probe: Probe, train: Train, flags: list[str], tmp_path: Path
) -> None:
    assert train(*flags, "--out=whole", "--eval-probe-every=2") == 0
    assert _train_until(8, train, probe, flags) == 130
    # the last checkpoint is of step 6, the last line of step 6 or later
    assert train("--resume=broken") == 0
    assert lines(tmp_path / "broken") == lines(tmp_path / "whole")


def _train_until(step: int, train: Train, probe: Probe, flags: list[str]) -> int:
    whole = probe.measure

    def die(backend: Backend, stop: StopFlag) -> Mapping[str, float] | None:
        if probe.calls * 2 >= step:
            raise KeyboardInterrupt
        return whole(backend, stop)

    probe.calls, probe.measure = 0, die  # type: ignore[method-assign]
    try:
        return train(*flags, "--out=broken", "--eval-probe-every=2")
    finally:
        probe.measure = whole  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--eval-probe-every=-1"], "--eval-probe-every -1 is negative"),
        (["--eval-probe-every=1", "--eval-probe-file=none"], "--eval-probe-file none is missing"),
        (["--eval-other-every", "5"], "--eval-other-every: no package that brings this evaluation"),
        (["--eval_other_every=5"], "look for other-eval; installed evaluations: probe"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    probe: Probe, train: Train, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], words: str,
) -> None:  # fmt: skip
    assert train(*flags, "--out=run", *arguments) == 65
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists(), "nothing is left behind"


def test_without_any_the_flag_says_what_is_missing(
    nothing: None, train: Train, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*flags, "--eval-hellaswag-every=5") == 65
    error = capsys.readouterr().err
    assert "look for hellaswag-eval" in error
    assert error.count("\n") == 1


def test_a_file_may_give_its_settings(probe: Probe, train: Train, flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[probe]\neval-probe-every = 6\n")
    assert train(*flags, "--out=run", "--config=my.toml") == 0
    assert [line["step"] for line in lines(tmp_path / "run")] == [6, 12]
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["evaluations"] == {"probe": {"eval_probe_every": 6, "eval_probe_file": None}}


def test_lines_of_each_kind_are_cut_back_by_their_own_step(tmp_path: Path) -> None:
    written = [{"step": 0, "val_loss": 1.0}, {"step": 0, "probe_sum": 1.0}, {"step": 1, "loss": 1.0}]
    for number, (last, kept) in enumerate(
        [((-1, -1, -1), 0), ((0, 0, -1), 1), ((0, 0, 0), 2), ((1, 0, 0), 3)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        file = MetricsFile(folder)
        for line in written:
            file.write(line)
        file.close()
        MetricsFile(folder, *last).close()
        assert read_metrics(folder / "metrics.jsonl") == written[:kept]
