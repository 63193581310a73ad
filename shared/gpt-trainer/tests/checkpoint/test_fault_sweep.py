"""Every call that changes a folder, stopped or made to fail once: what is left must be whole."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

# scenario -> steps that must be whole throughout, and steps whole after trying again
MUST = {"save": {1}, "save-over-damaged": {1}, "save-again": {1, 2}, "prune": {1, 4, 5}}
FINAL = {"save": [1, 2], "save-over-damaged": [1, 2], "save-again": [1, 2], "prune": [1, 4, 5]}
OLD_LEFTOVER = ".tmp-step-00000002-0badc0de"
# kill-half: a write is cut in the middle, every other call is not reached
SWEEPS = [
    ("save", "kill-half"),
    ("save", "ENOSPC"),
    ("save", "EIO"),
    ("save", "ENOSPC-for-good"),
    ("save-over-damaged", "kill-half"),
    ("save-over-damaged", "EDQUOT"),
    ("save-again", "kill"),
    ("save-again", "EIO"),
    ("prune", "kill"),
    ("prune", "EIO"),
    ("prune", "ENOSPC-for-good"),
]


def sweep(script: Path, scenario: str, fault: str, folder: Path) -> list[dict[str, Any]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), scenario, fault, str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(("scenario", "fault"), SWEEPS, ids=["-".join(pair) for pair in SWEEPS])
def test_whole_steps_survive_a_fault_at_every_call(
    scenario: str, fault: str, child_script: Path, tmp_path: Path
) -> None:
    reports = sweep(child_script, scenario, fault, tmp_path)
    assert reports[-1]["status"] == 100, "the sweep did not reach the end"
    # fewer would mean that the shim no longer sees the calls
    assert len(reports) > (45 if scenario == "prune" else 60)
    for report in reports:
        after, recovered = report["after"], report["recovered"]
        assert MUST[scenario] <= set(after["whole"]), report
        assert after["latest_equal"], report
        assert after["latest"] == max(after["whole"]), report
        if scenario != "save-over-damaged":
            assert not after["damaged"], report
            assert not after["refused"], report
        assert (recovered["whole"], recovered["damaged"]) == (FINAL[scenario], []), report
        assert recovered["hidden"] == [], report
        check_outcome(fault, report)


def check_outcome(fault: str, report: dict[str, Any]) -> None:
    if report["status"] == 100:
        return
    if fault.startswith("kill"):
        assert report["status"] == -9, report
        return
    # 0: the call that failed was one that the outcome does not hang on
    assert report["status"] in (0, 73), report
    temporary = {name for name in report["after"]["hidden"] if name.startswith(".tmp")}
    assert temporary <= {OLD_LEFTOVER}, report
    if report["status"] == 73:
        reason = os.strerror(getattr(errno, fault.split("-")[0]))
        assert reason in report["message"], report
        assert "checkpoints" in report["message"], report
        assert "choose another folder" in report["message"], report
        assert "\n" not in report["message"], report
