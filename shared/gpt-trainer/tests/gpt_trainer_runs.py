"""Short ways to run the commands in this process or in a fresh one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from gpt_trainer.settings import command_line

Train = Callable[..., int]
Capture = pytest.CaptureFixture[str]


def start(
    *arguments: str,
    cwd: Path,
    fault: str = "",
    environment: Mapping[str, str] | None = None,
    **options: object,
) -> subprocess.Popen[str]:
    """A command in a process of its own: ``start("train", ...)`` or ``start("sample", ...)``."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("gpt_trainer_toy.py")), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "TOY_FAULT": fault, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        | dict(environment or {}),
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def the_line(capsys: Capture) -> str:
    """What a failed command said: one line, and no traceback."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, *, gpu: bool) -> None:
    """Let runs read a step's numbers as late as on a GPU, or at once."""
    read = command_line.read_request
    monkeypatch.setattr(command_line, "read_request", lambda *given: replace(read(*given), gpu=gpu))
