"""Whether two runs are the same, to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpt_trainer.checkpoint import find_steps
from gpt_trainer.report.metrics import TIMING_FIELDS, read_metrics


def lines(run: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in TIMING_FIELDS}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def assert_same_run(one: Path, other: Path) -> None:
    """Same metrics, same newest step byte by byte, same score and translations, if any."""
    assert lines(one) == lines(other)
    (step, folder), (other_step, other_folder) = (find_steps(run)[-1] for run in (one, other))
    assert step == other_step
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert contents == {path.name: path.read_bytes() for path in other_folder.iterdir()}
    for name in ("score.json", "test-translations.txt"):
        assert (one / name).is_file() == (other / name).is_file()
        if (one / name).is_file():
            assert (one / name).read_bytes() == (other / name).read_bytes()
