"""Finding out before the first step that the last one could not be saved."""

from __future__ import annotations

import os
from pathlib import Path

from gpt_data.store.writing import probe_folder, write_errors

from gpt_trainer.errors import WriteError

FIXED_BYTES = 1 << 22


def step_bytes(parameters: int) -> int:
    """At most how many bytes one step takes: so many weights, two arrays for each, and the small files."""
    return 12 * parameters + FIXED_BYTES


def check_writable(run: Path, bytes_needed: int) -> None:
    """Create the run's folder, write and remove a probe, and compare the free space.

    Args:
        bytes_needed: Space that must be free; two steps are a sound minimum, as the old one is deleted
            only after the new one is whole.

    Raises:
        WriteError: If the folder cannot be written or has too little space.
    """
    probe_folder(run)
    with write_errors(f"cannot write in {run}"):
        space = os.statvfs(run)
    free = space.f_bavail * space.f_frsize
    if free < bytes_needed:
        raise WriteError(
            f"{run} has {free / 1e9:.2f} GB free, {bytes_needed / 1e9:.2f} GB are needed for checkpoints; "
            "free some space there or choose another folder"
        )
