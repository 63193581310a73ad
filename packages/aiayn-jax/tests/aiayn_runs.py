"""Tiny runs of the encoder-decoder's commands, in this process or in a fresh one, with faults planted.

A fault is ``SIGNAL:STEP``, sent to the process itself before that step, or ``SIGNAL:save:STEP``, sent in
the middle of saving it, between the weights and the moments.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TINY = [
    *("--n-layer=1", "--n-head=2", "--d-model=8", "--d-ff=16", "--longest=24", "--dropout=0.1"),
    *("--vocab=300", "--batch-tokens=64", "--buckets=1", "--width-multiple=4"),
    *("--steps=12", "--warmup=4", "--seed=3", "--device=cpu", "--plain"),
    *("--eval-every=6", "--score-pairs=2", "--save-every=3", "--average=2", "--beam=1", "--log-every=4"),
]
WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def write_pairs(folder: Path, count: int = 24) -> str:
    """Files of short sentences and their words backwards; the value of ``--data``."""
    sentences = [[WORDS[(i * k + k) % 10] for k in range(1, 2 + i % 4)] for i in range(count)]
    for name, lines in (("src", sentences), ("tgt", [words[::-1] for words in sentences])):
        (folder / name).write_text("".join(" ".join(words) + "\n" for words in lines))
    return f"pairs:{folder / 'src'},{folder / 'tgt'}"


def plant(patch: pytest.MonkeyPatch, fault: str) -> None:
    """Let this process meet the fault."""
    from aiayn_jax.runs.engine import Engine
    from gpt_trainer.checkpoint import save as saving

    name, _, place = fault.partition(":")
    number = getattr(signal, name)
    if place.startswith("save:"):
        write_tensors = saving.write_tensors

        def write(path: Path, tensors: Any) -> Any:
            if path.name == "optimizer.safetensors" and f"step-{int(place[5:]):08d}" in path.parent.name:
                os.kill(os.getpid(), number)
            return write_tensors(path, tensors)

        patch.setattr(saving, "write_tensors", write)
        return
    train_step = Engine.train_step

    def take(self: Engine, batch: Any, lr: float, step: int) -> Any:
        if step == int(place):
            os.kill(os.getpid(), number)
        return train_step(self, batch, lr, step)

    patch.setattr(Engine, "train_step", take)


def start(*arguments: str, cwd: Path, fault: str) -> subprocess.CompletedProcess[str]:
    """``aiayn-jax-train`` in a process of its own, which meets a fault."""
    command = [sys.executable, __file__, fault, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


if __name__ == "__main__":
    from aiayn_jax.commands import train_main

    plant(pytest.MonkeyPatch(), sys.argv[1])
    sys.exit(train_main(sys.argv[2:]))
