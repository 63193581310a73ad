"""A run that is stopped or killed and goes on equals one that never was, to the bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiayn_jax.commands import train_main
from aiayn_jax.runs.checkpoints import load_state, save_state
from aiayn_runs import TINY, plant, start, write_pairs
from gpt_trainer.checkpoint import find_steps
from gpt_trainer.report.metrics import TIMING_FIELDS, read_metrics


def lines(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in TIMING_FIELDS}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def assert_same_run(one: Path, other: Path) -> None:
    """Same steps, weights, moments, trainer's state, metrics, score and translations."""
    assert lines(one) == lines(other)
    a, b = (load_state(find_steps(run)[-1][1]) for run in (one, other))
    assert a.model.trainer == b.model.trainer
    for tree, same in ((a.model.parameters, b.model.parameters), (a.first, b.first), (a.second, b.second)):
        assert tree.keys() == same.keys()
        assert all(np.array_equal(tree[name], same[name]) for name in tree)
    for name in ("score.json", "test-translations.txt"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def flags(place: Path) -> list[str]:
    return [*TINY, f"--data={write_pairs(place)}"]


@pytest.fixture(scope="module")
def whole(place: Path, flags: list[str]) -> Path:
    assert train_main([*flags, f"--out={place / 'whole'}"]) == 0
    return place / "whole"


def test_a_whole_run_counts_every_step_once_and_learns(whole: Path) -> None:
    found = lines(whole)
    assert [line["step"] for line in found if "loss" in line] == list(range(1, 13))
    val = {line["step"]: line for line in found if "val_loss" in line}
    assert list(val) == [0, 6, 12]
    assert val[12]["val_loss"] < val[0]["val_loss"]
    # untrained, there is nothing worth translating with
    assert [("val_bleu" in line) for line in val.values()] == [False, True, True]
    # two are kept for the average
    assert [step for step, _ in find_steps(whole)] == [9, 12]


def test_the_score_is_written_with_its_signature_and_the_text(whole: Path) -> None:
    import sacrebleu

    score = json.loads((whole / "score.json").read_text())
    assert score["averaged_steps"] == [9, 12]
    assert (score["beam"], score["length_penalty"], score["name"]) == (1, 0.6, "bleu")
    assert "tok:13a" in score["signature"]
    assert f"version:{sacrebleu.__version__}" in score["signature"]
    # the first of every fifty of 24 pairs is held out: one line
    assert len((whole / "test-translations.txt").read_text().split("\n")) == 1 + 1


# before the first checkpoint, in the middle of writing one, between two
@pytest.mark.parametrize(
    "fault", ["SIGKILL:1", "SIGKILL:save:9", pytest.param("SIGKILL:5", marks=pytest.mark.slow)]
)
def test_killed_and_resumed(whole: Path, flags: list[str], tmp_path: Path, fault: str) -> None:
    died = start(*flags, "--out=cut", cwd=tmp_path, fault=fault)
    assert died.returncode == -9, died.stderr
    assert train_main([f"--resume={tmp_path / 'cut'}"]) == 0
    assert_same_run(whole, tmp_path / "cut")


# 7: its checkpoint lies between two of the schedule, and must push none of them out of the average
@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.slow), 7])
def test_stopped_by_a_signal_and_resumed(
    whole: Path,
    flags: list[str],
    tmp_path: Path,
    step: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cut = tmp_path / "cut"
    with pytest.MonkeyPatch.context() as patch:
        plant(patch, f"SIGTERM:{step}")
        assert train_main([*flags, f"--out={cut}"]) == 75
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == f"stopped by SIGTERM after step {step + 1}; go on with: aiayn-jax-train --resume {cut}"
    assert find_steps(cut)[-1][0] == step + 1
    assert train_main([f"--resume={cut}"]) == 0
    assert_same_run(whole, cut)


def test_a_finished_run_resumed_changes_nothing(whole: Path) -> None:
    before = {
        path: path.read_bytes() for path in whole.rglob("*") if path.suffix in (".jsonl", ".safetensors")
    }
    assert train_main([f"--resume={whole}"]) == 0
    assert {path: path.read_bytes() for path in before} == before


def test_a_damaged_step_is_passed_over_by_name_and_redone(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = shutil.copytree(whole, tmp_path / "cut")
    path = find_steps(cut)[-1][1] / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert train_main([f"--resume={cut}"]) == 0
    assert "refused step-00000012: " in capsys.readouterr().err
    assert_same_run(whole, cut)


@pytest.mark.parametrize("evaluated", ["6", True, None, 1e3, 13])
def test_a_state_of_another_type_is_refused(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], evaluated: object
) -> None:
    cut = shutil.copytree(whole, tmp_path / "cut")
    folder = find_steps(cut)[-1][1]
    saved = load_state(folder)
    shutil.rmtree(folder)
    model = saved.model._replace(trainer={**saved.model.trainer, "evaluated": evaluated})
    save_state(cut, saved._replace(model=model))
    assert train_main([f"--resume={cut}"]) == 65
    assert "evaluated is " in capsys.readouterr().err


@pytest.mark.slow
def test_going_on_for_longer_is_the_longer_run(flags: list[str], whole: Path, tmp_path: Path) -> None:
    """Every step but 12, which is the last of only one of them, and evaluated there."""
    long, grown = tmp_path / "long", shutil.copytree(whole, tmp_path / "grown")
    assert train_main([*flags, "--steps=15", f"--out={long}"]) == 0
    assert train_main([f"--resume={grown}", "--steps=15"]) == 0
    assert_same_run(long, grown)
