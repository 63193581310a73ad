"""Tiny runs of the encoder-decoder, and of a GPT-2, in this process or in a fresh one, with faults planted.

A fault is ``SIGNAL:STEP``, sent to the process itself before that step, or ``SIGNAL:save:STEP``, sent in
the middle of saving it, between the weights and the moments.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

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


class Trainer(NamedTuple):
    """A training command: its task's class, whose steps faults meet, and the flags of a tiny run."""

    command: str
    task: str
    flags: tuple[str, ...]

    def main(self, argv: Sequence[str]) -> int:
        """The command in this process."""
        if self.command == "aiayn-jax-train":
            from aiayn_jax.commands import train_main

            return train_main(argv)
        from gpt_jax.options import SPEC
        from gpt_trainer.commands import train_main as train_gpt2

        return train_gpt2(SPEC, argv)


TINY_GPT2 = [
    *("--tokenizer=bytes", "--n-layer=1", "--n-head=1", "--d-model=8", "--context=16", "--dropout=0.1"),
    *("--tokens-per-step=32", "--micro-batch=2", "--steps=12", "--warmup=4", "--seed=3", "--device=cpu"),
    *("--plain", "--eval-every=6", "--eval-rows=4", "--save-every=3", "--sample-every=0", "--log-every=4"),
]
TRAINERS = {
    "encoder-decoder": Trainer("aiayn-jax-train", "aiayn_jax.task:TranslationTask", (*TINY,)),
    "GPT-2": Trainer("gpt-jax-train", "gpt_trainer.gpt2.task:GPT2Task", (*TINY_GPT2,)),
}


def write_texts(folder: Path) -> str:
    """Files of text, some of them held out; the value of ``--data``."""
    (folder / "texts").mkdir()
    for number in range(60):
        (folder / "texts" / f"{number}.txt").write_text(f"{WORDS[number % 10]} and {WORDS[number % 7]}\n" * 8)
    return f"text:{folder / 'texts'}"


def plant(patch: pytest.MonkeyPatch, trainer: Trainer, fault: str) -> None:
    """Let this process meet the fault."""
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
    module, _, task = trainer.task.partition(":")
    kind = getattr(import_module(module), task)
    launch = kind.launch

    def take(self: Any, batch: Any, lr: float, step: int, weight: int) -> Any:
        if step == int(place):
            os.kill(os.getpid(), number)
        return launch(self, batch, lr, step, weight)

    patch.setattr(kind, "launch", take)


def start(trainer: str, fault: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A trainer in a process of its own, which meets a fault."""
    command = [sys.executable, __file__, trainer, fault, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240, check=False)


if __name__ == "__main__":
    chosen = TRAINERS[sys.argv[1]]
    plant(pytest.MonkeyPatch(), chosen, sys.argv[2])
    sys.exit(chosen.main(sys.argv[3:]))
