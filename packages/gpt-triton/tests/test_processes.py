"""A process a device, over gloo, each with its share of the optimizer's state: the losses of one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gpt_data.prepare import prepare
from gpt_trainer.checkpoint import find_steps, load_checkpoint
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

NOT_FINITE = """
import os
from gpt_triton import backend
from gpt_triton.commands import train
whole, calls = backend.target_weight, []
def weigh(*given):
    calls.append(given)
    return float("nan") if os.environ["RANK"] == "1" and len(calls) == 4 else whole(*given)
backend.target_weight = weigh
train()
"""
"""A training whose gradient is not finite on rank 1 alone, in step 4."""
LAUNCH = (
    "import sys; from gpt_trainer.ranks.torchrun import launch; sys.exit(launch('broken', 2, sys.argv[1:]))"
)


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Documents cut off targets, so that the processes' rows have different numbers of them."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text").mkdir()
    for n in range(200):
        (folder / "text" / f"{n}.txt").write_text(f"def f{n}(x):\n    return x * {n}\n" * (1 + n % 3))
    prepare(f"text:{folder / 'text'}", "bytes", folder / "shards")
    return [*SIZES, *PACE, *REPORTS, f"--data=shards:{folder / 'shards'}", "--tokenizer=bytes"]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def train_on_two(cwd: Path, *flags: str) -> None:
    """A training of two processes, to its end."""
    command = [sys.executable, "-m", "gpt_triton.train", "--devices=2", *flags]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# in bfloat16 only roundings travel; the float32 weights are gathered for the checkpoint; of three blocks'
# matrices, whole to Muon, one process has those of one
@pytest.mark.parametrize(
    ("precision", "optimizer", "rel"),
    [
        ("float32", "adamw", 1e-6),
        pytest.param("float32", "muon", 1e-6, marks=pytest.mark.slow),
        pytest.param("bfloat16", "adamw", 1e-3, marks=pytest.mark.slow),
    ],
)
def test_shares_of_the_optimizers_state_change_no_loss_and_no_checkpoint(
    precision: str, optimizer: str, rel: float, flags: list[str], tmp_path: Path
) -> None:
    flags = [*flags, f"--precision={precision}", f"--optimizer={optimizer}"]
    train_on_two(tmp_path, *flags, "--shard=optimizer", "--out=two")
    # all 16 rows at once: dropout masks belong to rows
    assert train_main(SPEC, [*flags, "--micro-batch=16", "--out", str(tmp_path / "one")]) == 0
    want = losses(tmp_path / "one")
    assert losses(tmp_path / "two") == pytest.approx(want, rel=rel)
    step = tmp_path / "two" / "checkpoints" / "step-00000020"
    assert train_main(SPEC, ["--resume", str(step), "--shard=none"]) == 0
    assert losses(tmp_path / "two") == pytest.approx(want, rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "optimizer"])
def test_two_processes_repeat_themselves_to_the_bit(shard: str, flags: list[str], tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("run", "again")]
    for folder in folders:
        train_on_two(tmp_path, *flags, f"--shard={shard}", f"--out={folder}")
    assert losses(folders[0]) == losses(folders[1])
    weights, again = (load_checkpoint(find_steps(folder)[-1][1]).parameters for folder in folders)
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "optimizer"])
def test_a_gradient_of_one_process_that_is_not_finite_stops_both_before_the_optimizer(
    shard: str, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(NOT_FINITE)
    rates = ("--dropout=0", "--eval-every=0", "--save-every=3", f"--shard={shard}")
    command = [sys.executable, "-c", LAUNCH, *flags, *rates, "--out=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 70, done.stdout + done.stderr
    assert done.stderr.count("step 4: loss nan") == 2, done.stderr
    (step, folder), *others = find_steps(tmp_path / "run")
    assert (step, others) == (3, [])
    weights = load_checkpoint(folder).parameters
    kept = np.load(tmp_path / "run" / "non-finite-step-00000004.npz")
    assert kept["norms"].tolist() == [np.linalg.norm(weights[name]) for name in kept["names"]]
