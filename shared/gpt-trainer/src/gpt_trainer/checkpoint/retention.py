"""Deleting old steps, and never so many that fewer whole ones remain than promised."""

from __future__ import annotations

import shutil
from pathlib import Path

from gpt_data.store.lock import FolderLock
from gpt_data.store.writing import sync_folder, write_errors

from gpt_trainer.checkpoint.discovery import CHECKPOINTS, find_steps
from gpt_trainer.checkpoint.load import verify
from gpt_trainer.checkpoint.save import hidden_name, remove_leftovers
from gpt_trainer.errors import InputError


def prune(run: Path, keep_last: int, best_step: int | None) -> list[int]:
    """Delete the steps older than the newest ``keep_last`` whole ones, except the best; their numbers.

    A step counts as whole only after it has been verified. If there are not ``keep_last`` whole steps,
    nothing is deleted.

    Args:
        keep_last: Number of newest steps to keep, at least 1.
        best_step: Step to keep whatever its age, or ``None``.

    Raises:
        ValueError: If ``keep_last`` is below 1.
        WriteError: If a step cannot be deleted, or another process is saving there.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last={keep_last} is below 1")
    checkpoints = run / CHECKPOINTS
    if not checkpoints.is_dir():
        return []
    with write_errors(f"cannot delete old steps in {checkpoints}"), FolderLock(checkpoints):
        remove_leftovers(checkpoints)
        old = [pair for pair in _older_than_kept(find_steps(run), keep_last) if pair[0] != best_step]
        for _, folder in old:
            _delete(checkpoints, folder)
    return [step for step, _ in old]


def _older_than_kept(steps: list[tuple[int, Path]], keep_last: int) -> list[tuple[int, Path]]:
    if len(steps) <= keep_last:
        return []
    whole = 0
    for index in range(len(steps) - 1, 0, -1):
        whole += _is_whole(steps[index][1])
        if whole == keep_last:
            return steps[:index]
    return []


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder)
    except InputError:
        return False
    return True


def _delete(checkpoints: Path, folder: Path) -> None:
    # under its hidden name a step that is half deleted cannot be taken for one that is damaged
    trash = hidden_name(checkpoints, "trash", folder.name)
    folder.rename(trash)
    sync_folder(checkpoints)
    shutil.rmtree(trash)
