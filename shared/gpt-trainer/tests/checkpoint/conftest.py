from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path

import pytest
from gpt_trainer.checkpoint import CheckpointState, save_checkpoint

CHILD = Path(__file__).with_name("fault_child.py")


@pytest.fixture(scope="session")
def child_script() -> Path:
    return CHILD


@pytest.fixture(scope="session")
def make_state() -> Callable[..., CheckpointState]:
    """Builds a tiny state, different for each step."""
    return runpy.run_path(str(CHILD))["make_state"]


@pytest.fixture(scope="session")
def same_state() -> Callable[[CheckpointState, CheckpointState], bool]:
    return runpy.run_path(str(CHILD))["same_state"]


@pytest.fixture
def run(tmp_path: Path, make_state: Callable[..., CheckpointState]) -> Path:
    """A run with the steps 1 and 2."""
    folder = tmp_path / "run"
    for step in (1, 2):
        save_checkpoint(folder, make_state(step))
    return folder
