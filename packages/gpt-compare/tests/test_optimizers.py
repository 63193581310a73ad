"""What ``bench/optimizers.py`` reads from its table: whole runs, the best settings, steps to a loss."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[1] / "bench" / "optimizers.py"


@pytest.fixture(scope="module")
def optimizers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("optimizers", BENCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # a class of the module looks itself up there
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def written(
    path: Path, head: tuple[str, ...], runs: dict[tuple[object, ...], list[tuple[int, float]]]
) -> Path:
    """A table with the looks of runs."""
    lines = [",".join(head)]
    lines += [
        ",".join(map(str, ("toy", *run, step, loss, 0.5)))
        for run, curve in runs.items()
        for step, loss in curve
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_seed_of_the_best_settings_is_compared(optimizers: ModuleType, tmp_path: Path) -> None:
    """Tries are shorter, and a run that was cut off is none."""
    table = written(
        tmp_path / "t.csv",
        optimizers.FIELDS,
        {
            ("adamw", 1e-3, 1.0, 0, 4): [(0, 9.0), (4, 7.0)],
            ("adamw", 2e-3, 1.0, 0, 4): [(0, 9.0), (4, 6.5)],
            ("adamw", 2e-3, 1.0, 0, 8): [(0, 9.0), (4, 7.0), (8, 5.0)],
            ("adamw", 2e-3, 1.0, 1, 8): [(0, 9.0), (4, 7.0), (8, 5.5)],
            ("adamw", 2e-3, 1.0, 2, 8): [(0, 9.0), (4, 7.0)],
            ("muon", 2e-3, 5.0, 0, 4): [(0, 9.0), (4, 5.5)],
            ("muon", 2e-3, 5.0, 0, 8): [(0, 9.0), (4, 6.0), (8, 4.0)],
        },
    )
    curves = optimizers.read_curves(table)
    assert {seed: curve[-1] for seed, curve in optimizers.seeds_of(curves, "adamw").items()} == {
        0: (8, 5.0),
        1: (8, 5.5),
    }
    assert list(optimizers.seeds_of(curves, "muon")) == [0]
    assert optimizers.tried(curves, "adamw") == [(1e-3, 7.0), (2e-3, 6.5)]
    assert optimizers.tried(curves, "muon") == [(1e-2, 5.5)]
    muon = optimizers.seeds_of(curves, "muon")[0]
    assert optimizers.steps_to(muon, 5.0) == 6.0
    assert optimizers.steps_to(muon, 9.0) == 0.0
    assert math.isnan(optimizers.steps_to(muon, 3.9))
