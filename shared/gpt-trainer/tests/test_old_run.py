"""A run that the first format's program left behind goes on: same data, same settings, same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from gpt_data.prepare import prepare
from gpt_trainer.checkpoint import find_steps, load_checkpoint, save_checkpoint
from gpt_trainer.report.metrics import TIMING_FIELDS, read_metrics
from gpt_trainer_runs import Train

OLD_RUN = Path(__file__).parent / "checkpoint" / "data" / "run-1"
"""Stopped by a signal after step 5 of 8; ``whole.jsonl`` is what the same program wrote without a stop."""


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The data of the old run: its fingerprint must be made of the same text again."""
    texts = tmp_path / "texts"
    texts.mkdir()
    train = "".join(f"def function_{n % 9}(x):\n    return x + {n % 7}\n" for n in range(60))
    (texts / "train.txt").write_text(train)
    val = "".join(f"def value_{n}(x):\n    return {n} * x\n" for n in range(9))
    (texts / "val.txt").write_text(val)
    prepare(f"text:{texts}", "bytes", tmp_path / "shards")
    return tmp_path / "shards"


def test_it_goes_on_as_it_would_have(shards: Path, train: Train, tmp_path: Path) -> None:
    shutil.copytree(OLD_RUN, tmp_path / "old")
    # the same step, saved by this program
    shutil.copytree(OLD_RUN, tmp_path / "new")
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    save_checkpoint(tmp_path / "new", load_checkpoint(find_steps(OLD_RUN)[-1][1]))
    for name in ("old", "new"):
        assert train(f"--resume={name}", f"--data=shards:{shards}") == 0
    old, new = (load_checkpoint(find_steps(tmp_path / name)[-1][1]) for name in ("old", "new"))
    assert old.step == new.step == 8
    assert list(old.optimizer_state) == ["first", "second"]
    before, after = ({"weights": saved.parameters, **saved.optimizer_state} for saved in (old, new))
    for tree, values in before.items():
        assert all(value.tobytes() == after[tree][name].tobytes() for name, value in values.items())

    found, want = (
        read_metrics(path) for path in (tmp_path / "old" / "metrics.jsonl", OLD_RUN / "whole.jsonl")
    )
    assert len(found) == len(want) == 11
    for line, expected in zip(found, want, strict=True):
        names = expected.keys() - TIMING_FIELDS
        assert line.keys() >= names
        # NumPy's products may round otherwise on another machine
        got, values = (np.array([float(entry[name]) for name in sorted(names)]) for entry in (line, expected))
        assert np.abs(got - values).max() <= 1e-5
