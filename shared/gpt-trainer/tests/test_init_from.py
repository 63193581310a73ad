"""Beginning from another run's weights, and evaluating a run alone."""

from __future__ import annotations

import json
from pathlib import Path

from gpt_trainer.checkpoint import RunLock, find_steps, load_checkpoint
from gpt_trainer.metrics import read_metrics
from gpt_trainer_runs import Capture, Train, the_line


def test_a_vocabulary_that_does_not_fit_the_checkpoint(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert train(*flags, "--steps=1", "--out=small") == 0
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "text.txt").write_text("one two three four five six seven\n" * 300)
    capsys.readouterr()
    other = [
        f"--data=text:{tmp_path}/texts",
        "--tokenizer=bpe-scratch:262",
        f"--data-cache={tmp_path}/cache",
        "--workers=1",
    ]
    assert train(*flags, *other, "--init-from=small") == 65
    assert "the data has a vocabulary of 262, the model of --init-from one of 257" in capsys.readouterr().err


def test_a_context_longer_than_the_models(train: Train, flags: list[str], capsys: Capture) -> None:
    assert train(*flags, "--steps=1", "--out=small") == 0
    capsys.readouterr()
    assert train(*flags, "--init-from=small", "--context=32") == 65
    assert "--context 32 is longer than the model's: --init-from has 16 positions" in the_line(capsys)


def test_a_shorter_context_than_the_models_trains(train: Train, flags: list[str], tmp_path: Path) -> None:
    assert train(*flags, "--steps=1", "--out=small") == 0
    assert train(*flags, "--init-from=small", "--context=8", "--steps=2", "--out=short") == 0
    step = load_checkpoint(find_steps(tmp_path / "short")[-1][1])
    assert step.model.context == 16
    assert step.trainer["init_from"] == "small"


def test_weights_from_another_run_and_a_fresh_optimizer(
    train: Train, flags: list[str], tmp_path: Path
) -> None:
    assert train(*flags, "--out=first") == 0
    assert train(*flags, "--init-from=first", "--out=second", "--steps=4") == 0
    last, first = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("first", "second"))
    assert first[0]["val_loss"] == [line for line in last if "val_loss" in line][-1]["val_loss"]


def test_evaluation_only(train: Train, flags: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert train(*flags, "--out=done") == 0
    last = [line for line in read_metrics(tmp_path / "done" / "metrics.jsonl") if "val_loss" in line][-1]
    capsys.readouterr()
    with RunLock(tmp_path / "done"):
        assert train("--resume=done", "--eval-only", "--json") == 0
    assert json.loads(capsys.readouterr().out)["val_loss"] == last["val_loss"]
