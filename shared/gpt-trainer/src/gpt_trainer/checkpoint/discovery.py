"""Which steps a run has, by their names alone; what is in them is for the reader to judge."""

from __future__ import annotations

import os
from pathlib import Path

from gpt_trainer.checkpoint.manifest import MANIFEST, parse_step_name
from gpt_trainer.errors import InputError

CHECKPOINTS = "checkpoints"
ADVICE = f"give a run's folder or one of its {CHECKPOINTS}/step-..."


def find_steps(run: Path) -> list[tuple[int, Path]]:
    """Step and folder of each step of a run, ascending by step number; times of files play no part.

    Counted are folders named exactly as ``save_checkpoint`` names them, unless empty. Links, files,
    leftovers and other names are passed over.

    Args:
        run: The run's folder; it may be missing.
    """
    try:
        with os.scandir(run / CHECKPOINTS) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    numbered = ((parse_step_name(name), run / CHECKPOINTS / name) for name in names)
    return sorted((step, folder) for step, folder in numbered if step is not None and _has_entries(folder))


def _has_entries(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return True


def resolve(path: Path) -> Path:
    """The step folder that ``path`` stands for: itself, or the newest of a run. It is not verified.

    Raises:
        InputError: If there is no such folder, or no step in it.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; {ADVICE}")
    if is_step(path):
        return path
    steps = find_steps(run_of(path))
    if not steps:
        raise InputError(f"{path} holds no checkpoint; {ADVICE}")
    return steps[-1][1]


def is_step(path: Path) -> bool:
    """Whether ``path`` names one step and not a run."""
    return parse_step_name(path.name) is not None or os.path.lexists(path / MANIFEST)


def run_of(path: Path) -> Path:
    """The run's folder, where the user may have named its ``checkpoints``."""
    return path.parent if path.name == CHECKPOINTS else path
