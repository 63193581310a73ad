"""Saves and deletes steps while the system calls of one folder are stopped, made to fail, or recorded.

Run as ``fault_child.py SCENARIO FAULT FOLDER``: for each call k of the scenario a forked child carries it
out with the fault at call k, then this process looks at what is left and prints one JSON line. It
imports neither torch nor jax, so that a fork is cheap and nothing else touches the folder.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gpt_trainer.checkpoint import (
    CheckpointState,
    find_steps,
    load_checkpoint,
    prune,
    save_checkpoint,
    step_or_newest,
    verify,
)
from gpt_trainer.errors import CommandError, InputError
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters

CALLS = ("mkdir", "open", "write", "pwrite", "ftruncate", "fsync", "rename", "unlink", "rmdir")
TOKENIZER = b'{"added_tokens": [{"id": 4, "content": "<|endoftext|>", "special": true}]}\n'
TINY = ModelConfig(n_layer=1, n_head=1, d_model=2, context=2, vocab_size=5)


def make_state(step: int, model: ModelConfig = TINY) -> CheckpointState:
    parameters = init_parameters(model, seed=step)
    first = {name: value * np.float32(0.5) for name, value in parameters.items()}
    second = {name: value * value for name, value in parameters.items()}
    trainer = {"position": step * 8, "loss": 0.1 + step, "best": None, "flags": ["a", {"b": True}]}
    return CheckpointState(step, model, parameters, {"first": first, "second": second}, trainer, TOKENIZER)


def same_state(a: CheckpointState, b: CheckpointState) -> bool:
    """Whether two states are equal to the bit."""
    if list(a.optimizer_state) != list(b.optimizer_state):
        return False
    trees = zip(*((s.parameters, *s.optimizer_state.values()) for s in (a, b)), strict=True)
    equal = all(
        list(left) == list(right) and all(left[n].tobytes() == right[n].tobytes() for n in left)
        for left, right in trees
    )
    rest = (a.step, a.model, a.trainer, a.tokenizer_json) == (b.step, b.model, b.trainer, b.tokenizer_json)
    return equal and rest


def save_second(run: Path) -> None:
    save_checkpoint(run, make_state(2))


def save_after_crash(run: Path) -> None:
    # a leftover of a dead process, and a damaged folder of the name that is to be saved
    leftover = run / "checkpoints" / ".tmp-step-00000002-0badc0de"
    leftover.mkdir()
    (leftover / "model.safetensors").write_bytes(b"half")
    shutil.copytree(run / "checkpoints" / "step-00000001", run / "checkpoints" / "step-00000002")


def prune_two(run: Path) -> None:
    prune(run, keep_last=2, best_step=1)


def fill(run: Path) -> None:
    for step in (2, 3, 4, 5):
        save_checkpoint(run, make_state(step))


def nothing(run: Path) -> None:
    del run


SCENARIOS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    # what is prepared, and what is swept
    "save": (nothing, save_second),
    "save-over-damaged": (save_after_crash, save_second),
    "save-again": (save_second, save_second),
    "prune": (fill, prune_two),
}


class Faults:
    """Counts the calls of ``CALLS`` and brings one down."""

    def __init__(self, fault: str, at: int) -> None:
        self.fault, self.at, self.count = fault, at, 0
        # a killed process leaves the page cache as it is, so that a real fsync would only cost time
        os.fsync = lambda descriptor: None
        for name in CALLS:
            setattr(os, name, self._wrap(name, getattr(os, name)))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            hit = self.count == self.at or (self.fault.endswith("-for-good") and self.count > self.at)
            if hit and self._applies(name, args):
                if self.fault == "kill-half" and name == "write":
                    call(args[0], args[1][: len(args[1]) // 2])
                if self.fault.startswith("kill"):
                    os.kill(os.getpid(), signal.SIGKILL)
                code = getattr(errno, self.fault.split("-")[0])
                raise OSError(code, os.strerror(code))
            return call(*args, **kwargs)

        return wrapped

    def _applies(self, name: str, args: tuple[Any, ...]) -> bool:
        # a full disk still lets files be removed and opened for reading
        if not self.fault.endswith("-for-good"):
            return True
        return name in ("mkdir", "write", "pwrite", "fsync") or (name == "open" and args[1] & os.O_CREAT != 0)


def attempt(action: Callable[[Path], None], run: Path, fault: str, at: int) -> dict[str, Any]:
    """Carry out ``action`` in a forked child with a fault at call ``at``."""
    message = run.with_name("message")
    child = os.fork()
    if child == 0:
        status, write_text = 0, message.write_text
        message.touch()
        faults = Faults(fault, at)
        try:
            action(run)
        except CommandError as error:
            faults.at = sys.maxsize
            write_text(str(error))
            status = error.exit_status
        except BaseException as error:  # noqa: BLE001 - a forked child must not go on as the parent
            faults.at = sys.maxsize
            write_text(repr(error))
            status = 1
        # 100: done before the fault's turn came, so the sweep is complete
        os._exit(100 if status == 0 and faults.count < at else status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"at": at, "status": status, "message": message.read_text()}


def look(run: Path) -> dict[str, Any]:
    """What discovery, verification and loading make of a run's folder."""
    whole, damaged, refused = [], [], []
    for step, folder in find_steps(run):
        try:
            verify(folder)
            whole.append(step)
        except InputError:
            damaged.append(step)
    latest = step_or_newest(run, load_checkpoint, refused.append)
    hidden = [entry.name for entry in (run / "checkpoints").iterdir() if entry.is_dir()]
    return {
        "whole": whole,
        "damaged": damaged,
        "latest": latest.step,
        "latest_equal": same_state(latest, make_state(latest.step)),
        "refused": refused,
        "hidden": sorted(name for name in hidden if name.startswith(".")),
    }


def sweep(scenario: str, fault: str, folder: Path) -> None:
    prepare, action = SCENARIOS[scenario]
    os.fsync = lambda descriptor: None  # for this process: see Faults
    pristine = folder / "pristine"
    save_checkpoint(pristine, make_state(1))
    prepare(pristine)
    for at in range(1, 10_000):
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(pristine, run)
        report = attempt(action, run, fault, at)
        report["after"] = look(run)
        action(run)
        report["recovered"] = look(run)
        sys.stdout.write(json.dumps(report) + "\n")
        if report["status"] == 100:
            return


if __name__ == "__main__":
    sweep(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
