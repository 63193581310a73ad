"""Runs of several processes, as users meet them: the same losses, one folder, and no hang under any fault."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from gpt_trainer.checkpoint import find_steps, load_checkpoint
from gpt_trainer.commands import train_main
from gpt_trainer.ranks.peers import Alone
from gpt_trainer.report.metrics import read_metrics
from gpt_trainer_runs import Train, start, the_line
from gpt_trainer_toy import SPEC


class Ended(NamedTuple):
    """How a process ended: its status, what it said, and seconds from the first end to the last."""

    status: int
    said: str
    seconds: float


def together(
    world: int,
    cwd: Path,
    *arguments: str,
    own: dict[int, str] | None = None,
    hanging: int | None = None,
    **options: str,
) -> list[Ended]:
    """The same command in several processes, as torchrun starts them."""
    store = cwd / f"store-{time.monotonic_ns()}"
    store.mkdir()
    shared = {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": "1", "TOY_STORE": str(store), "TOY_RANK": "1", **options}
    processes = [
        start(
            "train",
            *arguments,
            *([own[rank]] if own and rank in own else []),
            cwd=cwd,
            fault=options.get("TOY_FAULT", ""),
            environment=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(world)
    ]
    return list(_ends(processes, hanging))


def _ends(processes: list[subprocess.Popen[str]], hanging: int | None) -> Iterator[Ended]:
    def patient(process: subprocess.Popen[str]) -> tuple[str, float]:
        try:
            said = process.communicate(timeout=90)[1]
        except subprocess.TimeoutExpired:
            process.kill()
            said = process.communicate()[1]
        return said, time.monotonic()

    with ThreadPoolExecutor(len(processes)) as pool:
        running = [pool.submit(patient, process) for process in processes]
        wait(one for rank, one in enumerate(running) if rank != hanging)
        if hanging is not None:
            processes[hanging].kill()
        found = [one.result() for one in running]
    first = min(when for _, when in found)
    for process, (said, when) in zip(processes, found, strict=True):
        yield Ended(process.returncode, said, when - first)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def test_any_number_of_processes_takes_the_same_steps_and_goes_on_with_another(
    train: Train, flags: list[str], tmp_path: Path
) -> None:
    assert train(*flags, "--out=one") == 0
    # a signal to rank 1 alone ends all behind the same step, with one checkpoint
    ended = together(2, tmp_path, *flags, "--out=two", TOY_FAULT="sigterm:4")
    assert [one.status for one in ended] == [75, 75], ended
    assert [step for step, _ in find_steps(tmp_path / "two")] == [3, 5]
    assert [one.status for one in together(4, tmp_path, "--resume=two")] == [0] * 4
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)
    step = "checkpoints/step-00000012"
    found, whole = (load_checkpoint(tmp_path / name / step).parameters for name in ("two", "one"))
    for name, value in whole.items():
        assert np.linalg.norm(found[name] - value) <= 1e-5 * np.linalg.norm(value), name


def test_a_process_that_is_killed_ends_the_others_in_time_and_is_named(
    flags: list[str], tmp_path: Path
) -> None:
    flags = [*flags, "--tokens-per-step=96", "--micro-batch=1"]
    first, second, third = together(3, tmp_path, *flags, "--out=run", TOY_FAULT="kill:5")
    assert (first.status, second.status, third.status) == (69, -9, 69)
    assert max(first.seconds, third.seconds) < 30.0
    for one in (first, third):
        assert one.said.splitlines()[-1].startswith(("gpt-toy-train: rank 1 is lost", "rank 1 is lost")), (
            one.said
        )
        assert "Traceback" not in one.said
    assert [step for step, _ in find_steps(tmp_path / "run")] == [3]
    # started again as torchrun --max-restarts does, the same command goes on
    restarted = {"TORCHELASTIC_RESTART_COUNT": "1", "TORCHELASTIC_MAX_RESTARTS": "1"}
    ended = together(2, tmp_path, *flags, "--out=run", **restarted)
    assert [one.status for one in ended] == [0, 0], ended
    assert len(losses(tmp_path / "run")) == 12


@pytest.mark.slow
def test_a_process_that_hangs_is_named_within_the_time_limit(flags: list[str], tmp_path: Path) -> None:
    first, _ = together(2, tmp_path, *flags, "--out=run", "--patience=12", hanging=1, TOY_FAULT="stop:5")
    assert first.status == 69, first
    assert "rank 1 is lost: no sign of life for 1" in first.said


def test_a_gradient_of_one_process_that_is_not_finite_stops_all_before_the_optimizer(
    flags: list[str], tmp_path: Path
) -> None:
    ended = together(2, tmp_path, *flags, "--out=run", TOY_FAULT="nan:5")
    assert [one.status for one in ended] == [70, 70], ended
    assert [step for step, _ in find_steps(tmp_path / "run")] == [3]
    assert len(list((tmp_path / "run").glob("non-finite-step-*.npz"))) == 1


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ({1: "--lr=0.02"}, "rank 1 differs from rank 0 in config: lr is 0.02 there and 0.01 on rank 0"),
        ({0: "--micro-batch=1", 1: "--micro-batch=1"}, "makes 5 rows, which 2 devices do not divide"),
    ],
    ids=["learning-rate", "rows"],
)
def test_processes_that_do_not_fit_are_refused_before_the_first_step(
    flags: list[str], tmp_path: Path, own: dict[int, str], said: str
) -> None:
    rows = ["--tokens-per-step=80"] if 0 in own else []
    ended = together(2, tmp_path, *flags, *rows, "--out=run", own=own)
    assert {one.status for one in ended} <= {65, 69}
    assert any(said in one.said for one in ended), ended
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("data", "fingerprint"),
        ("data", "tokenizer_sha256"),
        ("options", "gpt-toy"),
        ("what it runs on", "numpy"),
        ("what it runs on", "first step"),
    ],
)
def test_a_process_with_other_data_or_another_version_is_refused(
    part: str, name: str, flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Two(Alone):
        """One that hears of another, which differs in one thing."""

        def gather(self, value: Any, what: str) -> list[Any]:
            if what != part:
                return [value]
            return [value, {key: "another" if key == name else its for key, its in value.items()}]

    spec = replace(SPEC, join=Two)
    assert train_main(spec, [*flags, f"--out={tmp_path / 'run'}"]) == 65
    assert f"rank 1 differs from rank 0 in {part}: {name} is another there" in the_line(capsys)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_all_and_none_is_begun(
    flags: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    # a file stands where the folder of checkpoints is to be
    (run / "checkpoints").write_text("")
    first, second = together(2, tmp_path, *flags, "--out=run")
    assert (first.status, second.status) == (73, 69), (first, second)
    assert "rank 0 ended: cannot lock run/checkpoints: File exists" in second.said
    assert (run / "checkpoints").is_file()


def test_a_flag_that_is_wrong_is_said_once_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[int] = []

    def launch(devices: int, words: object) -> int:
        started.append(devices)
        return 75

    spec = replace(SPEC, launch=launch)
    assert train_main(spec, [*flags, "--devices=2", "--lr=-1"]) == 65
    assert (started, the_line(capsys)) == ([], "gpt-toy-train: lr=-1.0 is not positive and finite\n")
    assert train_main(spec, [*flags, "--devices=3"]) == 65
    assert "rows, which 3 devices do not divide" in the_line(capsys)
    assert train_main(spec, [*flags, "--devices", "2"]) == 75
    assert train_main(spec, [*flags, "--devices=zero"]) == 65
    assert started == [2]
