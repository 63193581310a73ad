"""What a run writes, and how it goes on after it has ended or was damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from aiayn_compare import assert_same_run, lines
from aiayn_jax.checkpoints import load, save
from aiayn_jax.commands import train_main
from aiayn_runs import TINY, write_pairs
from gpt_trainer.checkpoint import find_steps


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
    saved = load(folder)
    shutil.rmtree(folder)
    state = {**saved.trainer["state"], "evaluated": evaluated}
    save(cut, saved._replace(trainer={**saved.trainer, "state": state}))
    assert train_main([f"--resume={cut}"]) == 65
    assert "evaluated is " in capsys.readouterr().err


@pytest.mark.slow
def test_going_on_for_longer_is_the_longer_run(flags: list[str], whole: Path, tmp_path: Path) -> None:
    """Every step but 12, which is the last of only one of them, and evaluated there."""
    long, grown = tmp_path / "long", shutil.copytree(whole, tmp_path / "grown")
    assert train_main([*flags, "--steps=15", f"--out={long}"]) == 0
    assert train_main([f"--resume={grown}", "--steps=15"]) == 0
    assert_same_run(long, grown)
