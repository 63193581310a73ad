"""A small corpus, and the command of a toy backend."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# the helpers beside the tests carry the package's name, so that no other member's can be meant
sys.path.insert(0, str(Path(__file__).parent))
# a shell's background job is deaf to Ctrl-C, and so would be every process that these tests start
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = [
    *("--n-layer=1", "--n-head=1", "--d-model=16", "--context=16", "--device=cpu"),
    *("--tokens-per-step=64", "--micro-batch=2", "--steps=12", "--warmup=3", "--lr=0.01"),
    *("--eval-every=4", "--eval-rows=4", "--save-every=3", "--log-every=4"),
    *("--sample-every=6", "--sample-tokens=8"),
]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from gpt_data.prepare import prepare

    folder = tmp_path_factory.mktemp("a corpus")
    texts = folder / "texts"
    texts.mkdir()
    for number in range(8):
        line = f"def function_{number}(x):\n    return x + {number}\n"
        (texts / f"{number}.txt").write_text(line * 12)
    prepare(f"text:{texts}", "bytes", folder / "shards")
    return folder / "shards"


@pytest.fixture(scope="session")
def flags(shards: Path) -> list[str]:
    return [*TINY, f"--data=shards:{shards}", "--tokenizer=bytes"]


@pytest.fixture(scope="session")
def finished(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped, for all tests: each changes a copy."""
    from gpt_trainer.commands import train_main
    from gpt_trainer_toy import SPEC

    run = tmp_path_factory.mktemp("finished") / "whole"
    assert train_main(SPEC, [*flags, f"--out={run}"]) == 0
    return run


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run ``gpt-toy-train`` in this process; ``fault`` plants one."""
    from gpt_trainer.commands import train_main
    from gpt_trainer.run import training
    from gpt_trainer_toy import SPEC

    monkeypatch.chdir(tmp_path)
    # the pictures of hundreds of runs would take longer than their steps
    monkeypatch.setattr(training, "plot_losses", lambda run: None)

    def run(*arguments: str, fault: str = "") -> int:
        monkeypatch.setenv("TOY_FAULT", fault)
        return train_main(SPEC, [str(argument) for argument in arguments])

    return run
