"""A process a device, over gloo, each with its share of the optimizer's state: the losses of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gpt_data.prepare import prepare
from gpt_trainer.commands import train_main
from gpt_trainer.report.metrics import read_metrics
from gpt_triton.options import SPEC

# a width of 12: the buffer has gaps, and its shares end inside matrices
SIZES = ["--n-layer=3", "--n-head=2", "--d-model=12", "--context=16", "--device=cpu", "--plain"]
PACE = [
    "--tokens-per-step=256",
    "--micro-batch=4",
    "--steps=30",
    "--warmup=5",
    "--lr=0.01",
    "--save-every=10",
]
REPORTS = ["--eval-every=15", "--eval-rows=16", "--sample-every=0", "--dropout=0.1", "--packing=documents"]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_shares_of_the_optimizers_state_change_no_loss_and_no_checkpoint(tmp_path: Path) -> None:
    """Documents cut off targets, so that the processes' rows have different numbers of them."""
    (tmp_path / "text").mkdir()
    for n in range(200):
        (tmp_path / "text" / f"{n}.txt").write_text(f"def f{n}(x):\n    return x * {n}\n" * (1 + n % 3))
    prepare(f"text:{tmp_path / 'text'}", "bytes", tmp_path / "shards")
    flags = [*SIZES, *PACE, *REPORTS, f"--data=shards:{tmp_path / 'shards'}", "--tokenizer=bytes"]
    words = ["-m", "gpt_triton.train", "--devices=2", "--shard=optimizer", "--out=two"]
    command = [sys.executable, *words, *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert train_main(SPEC, [*flags, "--out", str(tmp_path / "one")]) == 0
    want = losses(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(want, rel=1e-6)
    step = tmp_path / "two" / "checkpoints" / "step-00000020"
    assert train_main(SPEC, ["--resume", str(step), "--shard=none"]) == 0
    assert losses(tmp_path / "two") == pytest.approx(want, rel=1e-6)
