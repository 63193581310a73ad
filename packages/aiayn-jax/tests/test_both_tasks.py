"""A run that is stopped or killed and goes on equals one that never was, to the bit: whatever is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from aiayn_compare import assert_same_run
from aiayn_runs import TRAINERS, Trainer, plant, start, write_pairs, write_texts
from gpt_data.store.lock import FolderLock
from gpt_trainer.checkpoint import find_steps
from gpt_trainer.report.metrics import read_metrics


@pytest.fixture(scope="module", params=list(TRAINERS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def trainer(name: str) -> Trainer:
    return TRAINERS[name]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def flags(name: str, trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    if name == "encoder-decoder":
        return [*trainer.flags, f"--data={write_pairs(folder)}"]
    return [*trainer.flags, f"--data={write_texts(folder)}", f"--data-cache={folder / 'cache'}"]


@pytest.fixture(scope="module")
def whole(name: str, trainer: Trainer, flags: list[str], place: Path) -> Path:
    run = place / f"whole-{name}"
    assert trainer.main([*flags, f"--out={run}"]) == 0
    return run


# before the first checkpoint, in the middle of writing one, between two
@pytest.mark.parametrize(
    "fault", ["SIGKILL:1", "SIGKILL:save:9", pytest.param("SIGKILL:5", marks=pytest.mark.slow)]
)
def test_killed_and_resumed(
    name: str, trainer: Trainer, whole: Path, flags: list[str], tmp_path: Path, fault: str
) -> None:
    died = start(name, fault, *flags, "--out=cut", cwd=tmp_path)
    assert died.returncode == -9, died.stderr
    assert trainer.main([f"--resume={tmp_path / 'cut'}"]) == 0
    assert_same_run(whole, tmp_path / "cut")


# 7: its checkpoint lies between two of the schedule, and must push none of them out of an average
@pytest.mark.parametrize("fault", [pytest.param("SIGHUP:0", marks=pytest.mark.slow), "SIGTERM:7"])
def test_stopped_by_a_signal_and_resumed(
    trainer: Trainer,
    whole: Path,
    flags: list[str],
    tmp_path: Path,
    fault: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cut, (sent, _, step) = tmp_path / "cut", fault.partition(":")
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, trainer, fault)
        assert trainer.main([*flags, f"--out={cut}"]) == 75
    taken = int(step) + 1
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == f"stopped by {sent} after step {taken}; go on with: {trainer.command} --resume {cut}"
    assert find_steps(cut)[-1][0] == taken
    assert trainer.main([f"--resume={cut}"]) == 0
    assert_same_run(whole, cut)


def test_a_run_ends_with_the_step_that_reaches_its_tokens(
    name: str, trainer: Trainer, whole: Path, flags: list[str], tmp_path: Path
) -> None:
    steps = [line for line in read_metrics(whole / "metrics.jsonl") if "loss" in line]
    counted = ("tokens",) if name == "GPT-2" else ("source_tokens", "target_tokens")
    each = [sum(line[part] for part in counted) for line in steps]
    limit = each[6] if name == "GPT-2" else sum(each[:7])
    assert trainer.main([*flags, f"--out={tmp_path / 'run'}", f"--train-tokens={limit}"]) == 0
    assert [step for step, _ in find_steps(tmp_path / "run")][-2:] == [6, 7]
    if name == "encoder-decoder":
        # the last checkpoint is one of those whose mean is scored
        assert json.loads((tmp_path / "run" / "score.json").read_text())["averaged_steps"] == [6, 7]


@pytest.mark.parametrize("begin", [lambda run: f"--resume={run}", lambda run: f"--out={run}"])
def test_a_run_that_another_process_holds_is_left_alone(
    trainer: Trainer,
    whole: Path,
    flags: list[str],
    capsys: pytest.CaptureFixture[str],
    begin: Callable[[Path], str],
) -> None:
    given = [] if begin(whole).startswith("--resume") else flags
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.suffix in (".jsonl", ".json")}
    with FolderLock(whole):
        assert trainer.main([*given, begin(whole)]) == 73
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith(f"{trainer.command}: ")
    assert "Traceback" not in "".join(said)
    assert {path: path.read_bytes() for path in before} == before
