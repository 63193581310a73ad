"""A run that stops and goes on equals one that never stopped, to the bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpt_trainer.checkpoint import find_steps, load_checkpoint, save_checkpoint
from gpt_trainer.evaluate.validation import Evaluation
from gpt_trainer.gpt2 import task
from gpt_trainer.report.metrics import TIMING_FIELDS, MetricsFile, read_metrics
from gpt_trainer_runs import Capture, Train, start
from gpt_trainer_toy import SPEC


def lines(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in TIMING_FIELDS}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def assert_same_run(one: Path, other: Path) -> None:
    steps = [find_steps(run)[-1] for run in (one, other)]
    assert steps[0][0] == steps[1][0]
    a, b = (load_checkpoint(folder) for _, folder in steps)
    trees, others = ({"weights": saved.parameters, **saved.optimizer_state} for saved in (a, b))
    for tree, values in trees.items():
        assert all(np.array_equal(value, others[tree][name]) for name, value in values.items())
    assert a.trainer == b.trainer
    assert lines(one) == lines(other)


@pytest.fixture
def whole(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "whole")


def test_a_whole_run_learns_and_counts_every_step_once(whole: Path) -> None:
    found = lines(whole)
    assert [line["step"] for line in found if "loss" in line] == list(range(1, 13))
    assert [line["step"] for line in found if "val_loss" in line] == [0, 4, 8, 12]
    val = [line["val_loss"] for line in found if "val_loss" in line]
    assert abs(val[0] - np.log(257)) < 0.05
    assert val[-1] < val[0] - 0.3
    assert (whole / "loss.png").stat().st_size > 10_000


# first step, before and at a save, at an evaluation
@pytest.mark.parametrize("step", [0, 2, 3, 4])
def test_stopped_by_a_signal_and_resumed(
    whole: Path, train: Train, flags: list[str], tmp_path: Path, step: int
) -> None:
    assert train(*flags, "--out=cut", fault=f"sigterm:{step}") == 75
    assert find_steps(tmp_path / "cut")[-1][0] == step + 1
    assert train("--resume=cut") == 0
    assert_same_run(whole, tmp_path / "cut")


def test_stopped_in_the_last_step_and_resumed_twice(
    whole: Path, train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    """Its checkpoint is written before the last evaluation, which each resume finds missing."""
    assert train(*flags, "--out=cut", fault="sigterm:11") == 75
    for _ in range(2):
        assert train("--resume=cut") == 0
        assert lines(whole) == lines(tmp_path / "cut")
        assert "step 12: nothing is left to train\n" in capsys.readouterr().out


def test_a_signal_behind_the_last_checkpoint_finds_the_run_finished(
    whole: Path, train: Train, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def show(_: task.GPT2Task, step: int) -> None:
        if step == 12:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(task.GPT2Task, "show", show)
    assert train(*flags, "--out=late") == 0
    assert lines(whole) == lines(tmp_path / "late")


def test_a_signal_while_it_saves_is_answered_without_a_sample(
    train: Train, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = task.GPT2Task.save

    def save(its: task.GPT2Task, run: Path, step: int, trainer: dict[str, Any]) -> Path | None:
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(its, run, step, trainer)

    monkeypatch.setattr(task.GPT2Task, "save", save)
    monkeypatch.setattr(task.GPT2Task, "show", lambda *given: pytest.fail("a decoder may compile for long"))
    assert train(*flags, "--out=cut", "--sample-every=6") == 75


def test_metrics_are_on_disk_before_the_checkpoint_that_counts_on_them(
    train: Train, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    for kind, name in ((MetricsFile, "flush"), (task.GPT2Task, "save")):
        real = getattr(kind, name)

        def call(*given: Any, name: str = name, real: Any = real) -> Any:
            done.append(name)
            return real(*given)

        monkeypatch.setattr(kind, name, call)
    assert train(*flags, "--out=few", "--steps=6") == 0
    assert done[:4] == ["flush", "save", "flush", "save"]


# before the first step, and in the middle of training
@pytest.mark.parametrize(("evaluation", "step"), [(0, 0), (3, 4)])
def test_stopped_in_an_evaluation_and_resumed(
    whole: Path, train: Train, flags: list[str], tmp_path: Path, evaluation: int, step: int
) -> None:
    assert train(*flags, "--out=cut", fault=f"sigterm-eval:{evaluation}") == 75
    assert find_steps(tmp_path / "cut")[-1][0] == step
    assert train("--resume=cut") == 0
    assert_same_run(whole, tmp_path / "cut")


def test_stopped_and_resumed_three_times(whole: Path, train: Train, flags: list[str], tmp_path: Path) -> None:
    assert train(*flags, "--out=cut", fault="sigterm:1") == 75
    for step in (4, 6):
        assert train("--resume=cut", fault=f"sigterm:{step}") == 75
    assert train("--resume=cut") == 0
    assert_same_run(whole, tmp_path / "cut")


def test_killed_before_the_first_checkpoint_starts_again(
    whole: Path, flags: list[str], train: Train, tmp_path: Path
) -> None:
    killed = start("train", *flags, "--out=cut", cwd=tmp_path, fault="kill:1")
    assert killed.wait(120) == -signal.SIGKILL
    killed.communicate()
    assert find_steps(tmp_path / "cut") == []
    assert train("--resume=cut") == 0
    # the other process counted its threads differently
    assert lines(whole) == lines(tmp_path / "cut")


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_times_until_done(whole: Path, flags: list[str], tmp_path: Path, seed: int) -> None:
    """Fresh processes, killed anywhere (also while they start, save or evaluate)."""
    chance = random.Random(seed)
    again = ["--resume=cut"]
    command = [*flags, "--out=cut"]
    for attempt in range(8):
        fault = "" if attempt > 2 else f"kill:{chance.randrange(3 * attempt, 3 * attempt + 4)}"
        run = start("train", *command, cwd=tmp_path, fault=fault)
        if attempt in (1, 2):
            time.sleep(chance.uniform(0.5, 4.0))
            run.kill()
        run.communicate(timeout=120)
        if run.returncode == 0:
            break
        command = again if (tmp_path / "cut" / "run.json").exists() else command
    assert run.returncode == 0
    assert lines(whole) == lines(tmp_path / "cut")


def test_metrics_beyond_the_checkpoint_and_half_lines_are_cut(
    whole: Path, train: Train, flags: list[str], tmp_path: Path
) -> None:
    assert train(*flags, "--out=cut", fault="sigterm:4") == 75
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 1.0}\n{"step": 7, "lo')
    assert train("--resume=cut") == 0
    assert_same_run(whole, tmp_path / "cut")


@pytest.mark.parametrize(
    "line", ['{"step": "x"}', '{"step": null}', "[" * 100_000, '{"step": ' + "9" * 5000 + "}"]
)
def test_a_line_that_no_run_writes_ends_the_metrics(line: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1, "loss": 2.0}}\n{line}\n')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]
    MetricsFile(tmp_path, last_step=5).close()
    assert path.read_text() == '{"step": 1, "loss": 2.0}\n'


def test_an_older_step_is_gone_on_from_and_later_ones_set_aside(
    whole: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lines(whole)
    step = whole / "checkpoints" / "step-00000009"
    assert train(f"--resume={step}", "--steps=12") == 0
    assert "steps 12 are set aside" in capsys.readouterr().err
    assert lines(whole) == before


def test_a_damaged_newest_step_is_passed_over_with_a_word(
    whole: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    before = lines(whole)
    weights = whole / "checkpoints" / "step-00000012" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert train("--resume=whole") == 0
    assert "refused step-00000012" in capsys.readouterr().err
    assert lines(whole) == before
    # it is kept for what it is, and no step that the run has left behind
    kept = [
        path.name for path in (whole / "checkpoints").iterdir() if not path.name.startswith(("step", "."))
    ]
    assert [name[:21] for name in kept] == ["damaged-step-00000012"]


def test_more_steps_may_be_added(whole: Path, train: Train) -> None:
    assert train("--resume=whole", "--steps=14") == 0
    assert find_steps(whole)[-1][0] == 14


@pytest.mark.parametrize(
    "given",
    [
        "--seed=1",
        "--context=8",
        "--tokens-per-step=32",
        "--n-layer=2",
        "--lr=0.5",
        "--packing=documents",
        "--max-tokens=5",
    ],
)
def test_what_would_make_it_another_run_is_refused_by_name(
    whole: Path, train: Train, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    capsys.readouterr()
    assert train("--resume=whole", given) == 65
    said = capsys.readouterr().err
    assert given.partition("=")[0] in said
    assert said.count("\n") == 1


def test_the_state_of_another_optimizer_is_refused(
    whole: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = find_steps(whole)[-1][1]
    saved = load_checkpoint(folder)
    shutil.rmtree(folder)
    save_checkpoint(whole, saved._replace(optimizer_state={"momentum": saved.parameters}))
    capsys.readouterr()
    assert train("--resume=whole") == 65
    said = capsys.readouterr().err
    assert "whole: the optimizer's state has momentum, expected first, second" in said
    assert said.count("\n") == 1


def test_other_data_is_refused(
    whole: Path, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.txt").write_text("something else entirely\n" * 200)
    capsys.readouterr()
    other = [f"--data=text:{tmp_path / 'other.txt'}", f"--data-cache={tmp_path}"]
    assert train("--resume=whole", *other) == 65
    line = capsys.readouterr().err
    assert "is other data than" in line
    assert "use --init-from" in line


def test_a_mixture_is_resumed_to_the_bit_and_held_to_its_sources(
    shards: Path, train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "other.txt").write_text("something else entirely\n" * 200)
    mixture = f"mix:shards:{shards}:0.8,text:{tmp_path / 'other.txt'}:0.2"
    mixed = [*flags, f"--data={mixture}", f"--data-cache={tmp_path}"]
    assert train(*mixed, "--out=whole") == 0
    said = capsys.readouterr()
    assert f"shards:{shards} (0.8), text:{tmp_path / 'other.txt'} (0.2); validated on" in said.out + said.err
    assert train(*mixed, "--out=cut", fault="sigterm:5") == 75
    assert train("--resume=cut") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "cut")
    recorded = json.loads((tmp_path / "cut" / "run.json").read_text())["data"]["sources"]
    assert [entry["share"] for entry in recorded.values()] == [0.8, 0.2]
    capsys.readouterr()
    assert train("--resume=cut", f"--data={mixture.replace('0.2', '0.3')}", f"--data-cache={tmp_path}") == 65
    assert "is other data than" in capsys.readouterr().err


def test_another_micro_batch_is_allowed_with_a_warning(
    whole: Path, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--resume=whole", "--micro-batch=4", "--steps=13") == 0
    assert "may differ in its last bits" in capsys.readouterr().err


def test_the_newest_steps_are_kept_and_the_best_of_those_that_were_saved(
    train: Train, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # steps 0 and 3 are better than any other, but only even ones are saved, and none before the first
    losses = iter([0.5, 8.0, 7.0, 1.0, 2.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0])
    monkeypatch.setattr(task, "evaluate", lambda *given: Evaluation(next(losses), 10))
    assert train(*flags, "--out=few", "--eval-every=1", "--save-every=2", "--keep-last=2") == 0
    steps = dict(find_steps(tmp_path / "few"))
    assert [*steps] == [4, 10, 12]
    state = load_checkpoint(steps[12]).trainer["state"]
    assert (state["best_loss"], state["best_step"]) == (2.0, 4)


def test_the_second_signal_ends_at_once_and_the_store_is_whole(flags: list[str], tmp_path: Path) -> None:
    run = start("train", *flags, "--steps=100000", "--out=cut", cwd=tmp_path, stdout=subprocess.PIPE)
    assert run.stdout is not None
    for line in run.stdout:
        if "saved" in line:
            break
    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=60)
    # 128 and the signal: where the second came before Python had called the handler of the first
    assert run.returncode in (75, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
    step, folder = find_steps(tmp_path / "cut")[-1]
    assert load_checkpoint(folder).step == step


def test_the_spec_is_a_backend_without_a_framework() -> None:
    assert SPEC.name == "gpt-toy"


def test_steps_beyond_the_end_say_what_becomes_of_the_learning_rate(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    """Stretched, a schedule that had come to its floor is at a multiple of it: said, and avoidable."""
    assert train(*flags, "--out=run") == 0
    said = capsys.readouterr()
    assert said.out.rstrip().endswith("--resume run --steps 24 --schedule-steps 12")
    shutil.copytree(tmp_path / "run", tmp_path / "stretched")
    assert train("--resume=stretched", "--steps=24") == 0
    said = capsys.readouterr()
    assert said.err == (
        "the learning rate goes on at 6.50e-03, not at the 1.00e-03 that it has come to, as "
        "--steps 24 stretches its course; to go on at 1.00e-03 add --schedule-steps 12\n"
    )
    assert train("--resume=run", "--steps=24", "--schedule-steps=12") == 0
    assert capsys.readouterr().err == ""
    rates = [line["lr"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "lr" in line]
    assert rates[12:] == pytest.approx([0.001] * 12)


def test_a_rate_that_hardly_moves_is_not_worth_a_word(
    train: Train, flags: list[str], capsys: Capture
) -> None:
    assert train(*flags, "--out=run", "--schedule-steps=1000") == 0
    capsys.readouterr()
    assert train("--resume=run", "--steps=14", "--schedule-steps=1001") == 0
    assert capsys.readouterr().err == ""


def test_a_schedule_without_an_end_needs_no_more_than_steps(
    train: Train, flags: list[str], capsys: Capture
) -> None:
    assert train(*flags, "--out=run", "--schedule=noam") == 0
    assert capsys.readouterr().out.rstrip().endswith("--resume run --steps 24")
    assert train("--resume=run", "--steps=24") == 0
    assert capsys.readouterr().err == ""
