"""The trainer's own command drives the backend: a run, its continuation, and the weights they leave."""

from __future__ import annotations

from pathlib import Path

import pytest
from gpt_torchfunc.options import SPEC
from gpt_trainer.checkpoint import load_checkpoint, step_or_newest
from gpt_trainer.commands import train_main

TEXT = "\n".join(f"{i} squared is {i * i}, and cubed it is {i**3}." for i in range(4000))
FLAGS = [
    "--tokenizer",
    "bytes",
    "--device",
    "cpu",
    "--n-layer",
    "1",
    "--n-head",
    "2",
    "--d-model",
    "16",
    "--context",
    "16",
    "--tokens-per-step",
    "64",
    "--micro-batch",
    "2",
    "--warmup",
    "2",
    "--eval-every",
    "2",
    "--eval-rows",
    "4",
    "--save-every",
    "2",
    "--sample-every",
    "0",
    "--plain",
]


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text(TEXT)
    return [*FLAGS, "--data", f"text:{tmp_path / 'text.txt'}", "--data-cache", str(tmp_path / "cache")]


def test_a_run_resumed_halfway_ends_where_it_did(flags, tmp_path):
    """Two micro-batches a step, with dropout."""
    run = tmp_path / "run"
    assert train_main(SPEC, [*flags, "--dropout", "0.1", "--out", str(run), "--steps", "4"]) == 0
    straight = step_or_newest(run, load_checkpoint, pytest.fail)
    assert straight.step == 4
    assert train_main(SPEC, ["--resume", str(run / "checkpoints" / "step-00000002")]) == 0
    resumed = step_or_newest(run, load_checkpoint, pytest.fail)
    assert resumed.step == 4
    for name, value in straight.parameters.items():
        assert value.tobytes() == resumed.parameters[name].tobytes(), name
