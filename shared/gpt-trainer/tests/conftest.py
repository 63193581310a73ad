"""A small corpus, a toy backend, and short ways to run the commands in this process or in a fresh one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# gpt_trainer_toy is a module beside the tests, for them and for the processes that they start
sys.path.insert(0, str(HERE))

TINY = [
    *("--n-layer=1", "--n-head=1", "--d-model=16", "--context=16", "--device=cpu"),
    *("--tokens-per-step=64", "--micro-batch=2", "--steps=12", "--warmup=3", "--lr=0.01"),
    *("--eval-every=4", "--eval-rows=4", "--save-every=3", "--log-every=4"),
    *("--sample-every=6", "--sample-tokens=8"),
]

Train = Callable[..., int]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpt_data.prepare import prepare

    folder = tmp_path_factory.mktemp("corpus")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(8):
        line = f"def function_{number}(x):\n    return x + {number}\n"
        (texts / f"{number}.txt").write_text(line * 12)
    prepare(f"text:{texts}", "bytes", folder / "shards", workers=1)
    return folder / "shards"


@pytest.fixture
def flags(shards: Path) -> list[str]:
    return [*TINY, f"--data=shards:{shards}", "--tokenizer=bytes"]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Run ``gpt-toy-train`` in this process; ``fault`` plants one."""
    from gpt_trainer.commands import train_main
    from gpt_trainer_toy import SPEC

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, fault: str = "") -> int:
        monkeypatch.setenv("TOY_FAULT", fault)
        return train_main(SPEC, [str(argument) for argument in arguments])

    return run


def start(*arguments: str, cwd: Path, fault: str = "", **options: object) -> subprocess.Popen[str]:
    """A command in a process of its own: ``start("train", ...)`` or ``start("sample", ...)``."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "gpt_trainer_toy.py"), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "TOY_FAULT": fault, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        text=True,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},  # type: ignore[arg-type]
    )


def the_line(capsys: Capture) -> str:
    """What a failed command said: one line, and no traceback."""
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said
