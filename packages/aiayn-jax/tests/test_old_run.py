"""A run that the first format's program left behind goes on: same data, same settings, same losses."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from aiayn_jax.commands import train_main
from gpt_trainer.checkpoint import find_steps
from gpt_trainer.report.metrics import TIMING_FIELDS, read_metrics

OLD_RUN = Path(__file__).parent / "data" / "run-1"
"""Stopped after step 5 of 10; ``whole.jsonl`` is what the same program wrote without a stop.

Without dropout, whose masks follow another rule since.
"""


def test_it_goes_on_as_it_would_have(tmp_path: Path) -> None:
    run = shutil.copytree(OLD_RUN, tmp_path / "run")
    assert train_main([f"--resume={run}"]) == 0
    assert [step for step, _ in find_steps(run)] == [5, 10]
    found, want = (read_metrics(path) for path in (run / "metrics.jsonl", OLD_RUN / "whole.jsonl"))
    assert len(found) == len(want) == 10
    for line, expected in zip(found, want, strict=True):
        names = expected.keys() - TIMING_FIELDS
        assert line.keys() >= names
        # XLA's products may round otherwise on another machine
        got, values = (np.array([float(entry[name]) for name in sorted(names)]) for entry in (line, expected))
        assert np.abs(got - values).max() <= 1e-4
