"""What a competitor's own process sees: compilers at work, and texts continued."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpt_compare import observing
from gpt_compare.observing import CompileClock, Observer, listening, measure_generation
from gpt_trainer.backend import Backend
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.registry import BackendSpec


class Clock:
    """Stands still unless it is moved."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(observing, "time", clock)
    return clock


def test_compilers_that_work_side_by_side_count_once(clock: Clock) -> None:
    found = CompileClock()
    assert found.seconds() is None
    found.told = True
    for now, seconds in ((10.0, 4.0), (11.0, 3.0), (11.5, 0.5), (20.0, 2.0)):
        clock.now = now
        found.ended(seconds)
    assert found.seconds() == pytest.approx(5.5 + 2.0)


def test_each_framework_tells_of_its_compiler() -> None:
    """What torch and JAX compile here is heard; a backend of another kind tells nothing."""
    import jax
    import torch

    clocks = {name: CompileClock() for name in ("gpt-jax", "plain", "gpt-other")}
    for name, clock in clocks.items():
        with listening(name, clock):
            pass
    jax.jit(lambda x: x * 3.25 + 1.5)(np.float32(2.0)).block_until_ready()
    torch.compile(lambda x: x * 2.0, backend="eager")(torch.ones(3))
    assert clocks.pop("gpt-other").seconds() is None
    assert [bool(clock.seconds()) for clock in clocks.values()] == [True, True]


class Toy(Backend):
    """Takes a second for each token that it is fed, whatever the rows, and three the first time."""

    config = ModelConfig(n_layer=1, n_head=1, d_model=8, context=12, vocab_size=5)

    def __init__(self, clock: Clock) -> None:
        self.clock, self.fed = clock, 0

    def decoder(self, rows: int) -> Toy:
        assert rows < 9, "out of memory"
        self.rows = rows
        return self

    def feed(self, tokens: np.ndarray) -> np.ndarray:
        self.clock.now += tokens.shape[1] * (1.0 if self.fed else 3.0)
        self.fed += tokens.size
        assert tokens.shape[0] == self.rows
        return np.eye(5, dtype=np.float32)[np.zeros(self.rows, int)]


def test_generation_is_timed_when_it_is_warm(clock: Clock) -> None:
    """Half of the context is read, in as many seconds; each token after it takes one for all texts."""
    assert measure_generation(Toy(clock), 4) == (4, pytest.approx(4.0), pytest.approx(4.0))  # type: ignore[arg-type]


@pytest.mark.parametrize("status", [0, 65])
def test_what_was_seen_is_written_into_the_runs_folder(
    clock: Clock, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    """A number of texts that does not fit is said, and the run is as good as it was."""
    made: list[Any] = []
    spec = BackendSpec("toy", SimpleNamespace, lambda *_: Toy(clock), lambda: False)  # type: ignore[arg-type, return-value]

    def train(given: BackendSpec) -> int:
        made.append(given.create(None, None, None, None))  # type: ignore[arg-type]
        return status

    assert Observer("toy", (2, 16)).run(spec, train, tmp_path) == status
    found = json.loads((tmp_path / "observed.json").read_text())
    assert found["compile_seconds"] is None
    assert [speed[0] for speed in found.get("generation", [])] == ([2] if status == 0 else [])
    assert ("generating 16 texts failed: out of memory" in capsys.readouterr().err) == (status == 0)
