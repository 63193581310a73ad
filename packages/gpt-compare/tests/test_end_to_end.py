"""Whole comparisons with real trainers: the same weights, batches and rates give the same losses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gpt_compare_toy import SMALL, text_folder

# float32, two micro-batches a step: what rounding alone makes of it in twelve steps
AGREEMENT = 1e-5


def compare(folder: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict]:
    data = ["--data", f"text:{text_folder(folder / 'text')}", "--data-cache", str(folder / "cache")]
    command = [sys.executable, "-c", "from gpt_compare.entry import main; main()"]
    given = [*SMALL, *data, "--out", str(folder / "out"), *words]
    # such small products gain nothing from a second thread
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *given], env=environment, capture_output=True, text=True, check=False)
    return done, json.loads((folder / "out" / "report.json").read_text())


def check(report: dict) -> None:
    """Losses agree step by step, and so does what comes before and after."""
    first, *others = [row["figures"] for row in report["rows"] if row["figures"]]
    assert first["losses"][-1] < first["losses"][0] - 1.0, "it learns"
    for figures in others:
        assert figures["losses"] == pytest.approx(first["losses"], rel=AGREEMENT)
        assert figures["val_loss"] == pytest.approx(first["val_loss"], rel=AGREEMENT)
    for row in report["rows"][1:]:
        assert row["gap"] is None or 0.0 < row["gap"] <= AGREEMENT
    for figures in (first, *others):
        assert 0.0 < figures["step_seconds"][1] < figures["training_seconds"]
        assert figures["peak_memory_bytes"] > 10**7


def test_gpt_triton_and_plain_train_alike(tmp_path: Path) -> None:
    """And a competitor that this machine cannot run says why, in the trainer's own words."""
    done, report = compare(tmp_path, "--steps", "12", "--runs", "gpt-triton", "absent --x", "plain")
    assert done.returncode == 1, done.stderr
    assert [bool(row["figures"]) for row in report["rows"]] == [True, False, True]
    assert "backend 'absent' is not installed" in report["rows"][1]["error"]
    check(report)
    assert [row["made_by"].get("kernels") for row in report["rows"]] == ["reference", None, None]
    assert {path.name for path in (tmp_path / "out").glob("*.*") if path.is_file()} == {
        "plan.toml", "report.html", "report.json", "report.md",
        "speed.png", "memory.png", "loss-by-step.png", "loss-by-time.png",
    }  # fmt: skip
    assert not list((tmp_path / "out").glob("*/checkpoints"))
    # what is not kept is not gone on with, and its losses are in the comparison's plots
    said = (tmp_path / "out" / "3-plain" / "output.txt").read_text()
    assert not any(word in said for word in ("saved", "next:", "loss.png"))
    assert not list((tmp_path / "out").glob("*/loss.png"))


@pytest.mark.slow
def test_all_four_train_alike(tmp_path: Path) -> None:
    """Also compiled, and scanned or unrolled."""
    done, report = compare(
        tmp_path, "--steps", "12", "--runs",
        "gpt-torchfunc", "gpt-jax", "gpt-jax --layers unroll", "plain --compile on",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert report["rows"][3]["made_by"]["compile"] == "on"
    check(report)
