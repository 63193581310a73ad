"""Writing one step: a hidden sibling folder, each file flushed, the manifest last, then one rename."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gpt_data.manifest import MAX_TOKENIZER_BYTES
from gpt_data.store.lock import FolderLock
from gpt_data.store.reading import UnreadableError
from gpt_data.store.writing import sync_folder, write_errors, write_file

from gpt_trainer.checkpoint.discovery import CHECKPOINTS
from gpt_trainer.checkpoint.load import CONFIG_LIMIT, TRAINER_LIMIT, verify
from gpt_trainer.checkpoint.manifest import (
    CONFIG,
    MANIFEST,
    MODEL,
    OPTIMIZER,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TRAINER,
    Manifest,
    NewerFormatError,
    manifest_to_json,
    read_manifest,
    step_name,
)
from gpt_trainer.checkpoint.model_json import model_to_json
from gpt_trainer.checkpoint.state import CheckpointState, check_state
from gpt_trainer.checkpoint.tensors import write_tensors
from gpt_trainer.checkpoint.tokenizer_config import end_of_text_id, tokenizer_config_to_json
from gpt_trainer.errors import InputError, WriteError
from gpt_trainer.parameters import parameter_shapes

LEFTOVER = re.compile(r"\.(tmp|trash)-step-\d{8,}-[0-9a-f]{8}", re.ASCII)


def save_checkpoint(run: Path, state: CheckpointState) -> Path:
    """Save one step, whole or not at all; when this returns it is on disk.

    Saving a step again with the same content changes nothing. A damaged folder of that name is
    moved aside, to ``damaged-step-...``, and replaced.

    Returns:
        The step's folder, ``<run>/checkpoints/step-00000100``.

    Raises:
        ValueError: If the state is not one that could be loaded again (NaN, wrong shapes, not JSON).
        WriteError: If it cannot be written, the step exists with other content, or another process is
            saving there. Older steps are as they were, and nothing half-written stays.
    """
    check_state(state)
    files = {CONFIG: model_to_json(state.model, _end_of_text(state))}
    if state.tokenizer_json is not None:
        files[TOKENIZER] = state.tokenizer_json
    return save_step(run, state.step, state.trainer, files, _tensors(state))


def save_step(
    run: Path,
    step: int,
    trainer: Mapping[str, Any],
    files: Mapping[str, bytes],
    tensors: Mapping[str, Mapping[str, np.ndarray]],
) -> Path:
    """Save any model's step, whole or not at all, as ``save_checkpoint`` does GPT-2's; the step's folder.

    Args:
        trainer: The trainer's own state as JSON values.
        files: ``config.json``, and ``tokenizer.json`` if there is one; the caller has seen that they can be
            read again. What ``transformers`` must know of a tokenizer is added.
        tensors: Float32 arrays by name, for each file that holds them.

    Raises:
        ValueError: If a file is too long to be read again, or ``tokenizer.json`` is not a tokenizer's, or
            ``trainer`` holds NaN or infinity.
        WriteError: As ``save_checkpoint``.
    """
    told = json.dumps({"step": step, "trainer": trainer}, indent=2, sort_keys=True, allow_nan=False)
    files = {**files, TRAINER: told.encode() + b"\n"}
    if TOKENIZER in files:
        files[TOKENIZER_CONFIG] = tokenizer_config_to_json(files[TOKENIZER])
    _check_lengths(files, step)
    checkpoints = run / CHECKPOINTS
    with write_errors(f"cannot save step {step} in {checkpoints}"), FolderLock(checkpoints):
        remove_leftovers(checkpoints)
        temporary = hidden_name(checkpoints, "tmp", step_name(step))
        try:
            temporary.mkdir()
            manifest = _write_step(temporary, step, files, tensors)
            return _publish(temporary, manifest, checkpoints / step_name(step))
        except BaseException:
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)
            raise


def hidden_name(checkpoints: Path, kind: str, name: str) -> Path:
    """A name, not taken, for a folder that is being written (``tmp``) or deleted (``trash``)."""
    return checkpoints / f".{kind}-{name}-{secrets.token_hex(4)}"


def remove_leftovers(checkpoints: Path) -> None:
    """Remove what a process that died in the middle of a save or a deletion has left."""
    with os.scandir(checkpoints) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        if LEFTOVER.fullmatch(name):
            # a leftover that cannot be removed takes space, but is no reason not to save
            with contextlib.suppress(OSError):
                shutil.rmtree(checkpoints / name)


def _check_lengths(files: Mapping[str, bytes], step: int) -> None:
    limits = {CONFIG: CONFIG_LIMIT, TRAINER: TRAINER_LIMIT, TOKENIZER: MAX_TOKENIZER_BYTES}
    limits[TOKENIZER_CONFIG] = CONFIG_LIMIT
    for name, content in files.items():
        if len(content) > limits[name]:
            raise ValueError(f"{name} of step {step} has {len(content)} bytes, limit {limits[name]}")


def _end_of_text(state: CheckpointState) -> int | None:
    if state.tokenizer_json is None:
        return None
    found = end_of_text_id(state.tokenizer_json)
    return found if found is not None and found < state.model.vocab_size else None


def _tensors(state: CheckpointState) -> dict[str, dict[str, np.ndarray]]:
    names = parameter_shapes(state.model)
    trees = state.optimizer_state.items()
    flat = {f"{tree}.{name}": values[name] for tree, values in trees for name in names if name in values}
    return {MODEL: {name: state.parameters[name] for name in names}, OPTIMIZER: flat}


def _write_step(
    folder: Path, step: int, files: Mapping[str, bytes], tensors: Mapping[str, Mapping[str, np.ndarray]]
) -> Manifest:
    records = {name: write_file(folder / name, [content]) for name, content in files.items()}
    records |= {name: write_tensors(folder / name, arrays) for name, arrays in tensors.items()}
    manifest = Manifest(step, records)
    write_file(folder / MANIFEST, [manifest_to_json(manifest)])
    sync_folder(folder)
    return manifest


def _publish(temporary: Path, manifest: Manifest, target: Path) -> Path:
    if os.path.lexists(target / MANIFEST) or (target.is_dir() and any(target.iterdir())):
        if _same_content(manifest, target):
            shutil.rmtree(temporary)
            return target
        target.rename(damaged_name(target))
    temporary.rename(target)
    sync_folder(target.parent)
    return target


def damaged_name(target: Path) -> Path:
    """Where a damaged step is moved to; discovery passes over the name and nothing deletes it."""
    return target.with_name(f"damaged-{target.name}-{secrets.token_hex(4)}")


def _same_content(manifest: Manifest, target: Path) -> bool:
    """Whether the step that exists equals the new one; false if the existing one is damaged.

    Raises:
        WriteError: If it is whole and differs.
    """
    advice = "resume from the newest step, or choose another folder"
    try:
        verify(target)
        existing = read_manifest(target)
    except (NewerFormatError, UnreadableError) as error:
        raise WriteError(f"{target} exists: {error}; {advice}") from None
    except InputError:
        return False
    if existing == manifest:
        return True
    raise WriteError(f"{target} exists with other content; {advice}")
