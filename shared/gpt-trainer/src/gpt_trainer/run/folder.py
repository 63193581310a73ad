"""A run's folder: its name, what says that it is taken, and the record that lets it start again.

``run.json`` is written before the first step. It holds the configuration, so that a run that was killed
before its first checkpoint still resumes, from the start.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from gpt_data.store.reading import read_bytes
from gpt_data.store.strict_json import check_seal, parse_object, seal
from gpt_data.store.writing import write_atomic

from gpt_trainer.checkpoint import find_steps
from gpt_trainer.errors import InputError, WriteError
from gpt_trainer.report.metrics import METRICS_NAME
from gpt_trainer.run.record import Record

RECORD_NAME = "run.json"
RUNS = Path("runs")
RECORD_LIMIT = 1 << 20
UNSEALED = {part.name for part in fields(Record)}
"""All that the first versions wrote: a file that holds anything else has a seal."""


def create_folder(out: Path | None, preset: str, parent: Path = RUNS) -> Path:
    """The folder for a new run, created.

    Args:
        out: The folder that the user named; ``<parent>/<preset>-<n>`` with the first free n if None.

    Raises:
        InputError: If the folder holds a run already.
        WriteError: If it cannot be created.
    """
    try:
        if out is None:
            return _first_free(preset, parent)
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        where = out or parent
        raise WriteError(
            f"cannot create {where}: {error.strerror or error}; choose another folder with --out"
        ) from None
    return out


def holds_run(folder: Path) -> bool:
    """Whether there is anything of a run."""
    return (folder / RECORD_NAME).exists() or (folder / METRICS_NAME).exists() or bool(find_steps(folder))


def refuse_existing(run: Path) -> None:
    """Make sure that a new run overwrites nothing.

    Raises:
        InputError: If the folder holds a run.
    """
    if holds_run(run):
        raise InputError(
            f"{run} holds a run already: go on with --resume {shlex.quote(str(run))}, or choose another --out"
        )


def _first_free(preset: str, parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / f"{preset}-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder


def store_record(run: Path, record: dict[str, Any]) -> None:
    """Write ``run.json``, whole or not at all.

    Raises:
        WriteError: If it cannot be written.
    """
    content = json.dumps(seal(record), indent=2, allow_nan=False)
    write_atomic(run / RECORD_NAME, content.encode() + b"\n")


def stored_record(run: Path) -> dict[str, Any] | None:
    """The content of ``run.json``; None if there is no such file.

    Raises:
        InputError: If it cannot be read or is damaged.
    """
    path = run / RECORD_NAME
    if not os.path.lexists(path):
        return None
    try:
        values = parse_object(read_bytes(path, RECORD_LIMIT), path)
        if not values.keys() <= UNSEALED:
            check_seal(values, path)
        return values
    except InputError as error:
        raise InputError(f"{error}; start a new run") from None


def set_aside_later(run: Path, step: int) -> list[int]:
    """Rename the steps after ``step``, which are returned: the run goes on from there and takes them again.

    Nothing is deleted; ``superseded-step-...`` is passed over by whatever looks for steps.
    """
    later = [(number, folder) for number, folder in find_steps(run) if number > step]
    for _, folder in later:
        folder.rename(folder.with_name(f"superseded-{folder.name}-{secrets.token_hex(4)}"))
    return [number for number, _ in later]
