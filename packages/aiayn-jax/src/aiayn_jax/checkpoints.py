"""Checkpoints of the encoder-decoder: gpt_trainer's folder per step, with this model's files in it.

``model.safetensors`` and ``optimizer.safetensors`` hold float32 arrays by the names of
``config.parameter_shapes``; ``config.json`` the sizes; ``tokenizer.json`` the joint BPE. Everything is
held to the manifest before any of it is used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpt_data.errors import naming, shown
from gpt_data.store.reading import read_bytes
from gpt_data.store.strict_json import parse_object
from gpt_trainer.checkpoint import ForeignError, find_steps, prune
from gpt_trainer.checkpoint.load import (
    CONFIG_LIMIT,
    load_tensors,
    load_tokenizer,
    load_trainer,
    refusing,
)
from gpt_trainer.checkpoint.manifest import (
    CONFIG,
    MODEL,
    OPTIMIZER,
    TOKENIZER,
    Manifest,
    read_manifest,
)
from gpt_trainer.checkpoint.save import save_step
from gpt_trainer.errors import InputError

from aiayn_jax.config import TransformerConfig, parameter_shapes

Named = dict[str, np.ndarray]
MODEL_TYPE = "aiayn-transformer"
MOMENTS = ("first", "second")
SIZE_LIMIT, LAYER_LIMIT = 1 << 24, 512


class Saved(NamedTuple):
    """A step of a run.

    Attributes:
        step: Optimizer steps taken.
        config: The sizes.
        parameters: Weights by name.
        tokenizer_json: The bytes of ``tokenizer.json``.
        trainer: The trainer's own state.
        moments: Adam's two by name; None where only the model was loaded.
    """

    step: int
    config: TransformerConfig
    parameters: Named
    tokenizer_json: bytes
    trainer: dict[str, Any]
    moments: tuple[Named, Named] | None = None


def save(run: Path, saved: Saved) -> Path:
    """Save a step with its moments, whole or not at all.

    Returns:
        The step's folder.

    Raises:
        ValueError: If an array holds NaN or infinity; nothing is saved then.
        WriteError: If it cannot be written; older steps are as they were.
    """
    assert saved.moments is not None, "a run goes on from its moments too"
    moments = dict(zip(MOMENTS, saved.moments, strict=True))
    for what, arrays in {"weights": saved.parameters, **moments}.items():
        bad = [name for name, value in arrays.items() if not np.isfinite(value).all()]
        if bad:
            raise ValueError(f"{what} of {bad[0]} are not finite")
    files = {CONFIG: config_to_json(saved.config), TOKENIZER: saved.tokenizer_json}
    optimizer = {
        f"{label}.{name}": value for label, arrays in moments.items() for name, value in arrays.items()
    }
    return save_step(run, saved.step, saved.trainer, files, {MODEL: saved.parameters, OPTIMIZER: optimizer})


@refusing
def load_model(folder: Path) -> Saved:
    """Load a step without Adam's moments.

    Raises:
        InputError: If anything that is read is missing, damaged or does not fit.
    """
    return _load_model(folder, read_manifest(folder))


@refusing
def load(folder: Path) -> Saved:
    """Load a step.

    Raises:
        InputError: If anything in it is missing, damaged or does not fit.
    """
    manifest = read_manifest(folder)
    model = _load_model(folder, manifest)
    shapes = parameter_shapes(model.config)
    want = {f"{label}.{name}": shape for label in MOMENTS for name, shape in shapes.items()}
    values = _finite(load_tensors(folder / OPTIMIZER, manifest, want), folder / OPTIMIZER)
    first, second = ({name: values[f"{label}.{name}"] for name in shapes} for label in MOMENTS)
    return model._replace(moments=(first, second))


def _load_model(folder: Path, manifest: Manifest) -> Saved:
    path = folder / CONFIG
    raw = read_bytes(path, CONFIG_LIMIT, manifest.files[CONFIG])
    config = config_from_json(parse_object(raw, path), path)
    trainer = _with_state(load_trainer(folder, manifest))
    tokenizer = load_tokenizer(folder, manifest)
    if tokenizer is None:
        raise InputError(f"{folder} has no {TOKENIZER}")
    values = load_tensors(folder / MODEL, manifest, parameter_shapes(config))
    return Saved(manifest.step, config, _finite(values, folder / MODEL), tokenizer, trainer)


def _with_state(trainer: dict[str, Any]) -> dict[str, Any]:
    """The first runs wrote the step of their last evaluation beside the record, and knew of no best one."""
    if "state" in trainer or "evaluated" not in trainer:
        return trainer
    state = {"evaluated": trainer["evaluated"], "best_loss": None, "best_step": None}
    return {**trainer, "state": state}


def _finite(values: Named, path: Path) -> Named:
    bad = [name for name, value in values.items() if not np.isfinite(value).all()]
    if bad:
        raise InputError(f"{path}: {bad[0]} holds NaN or infinity")
    return values


def config_to_json(config: TransformerConfig) -> bytes:
    """The content of ``config.json``."""
    return json.dumps({"model_type": MODEL_TYPE, **asdict(config)}, indent=2).encode() + b"\n"


def config_from_json(values: Mapping[str, Any], path: Path) -> TransformerConfig:
    """The sizes that ``config_to_json`` wrote.

    Raises:
        ForeignError: If it is of another kind of model.
        InputError: If it is not exactly what was written.
    """
    kind = values.get("model_type")
    if kind != MODEL_TYPE:
        raise ForeignError(f"{path}: model_type is {shown(kind)}, expected {MODEL_TYPE!r}")
    hints = {item.name: item.type for item in fields(TransformerConfig)}
    if values.keys() != {"model_type", *hints}:
        raise InputError(f"{path} holds {shown(sorted(values))}, expected model_type, {', '.join(hints)}")
    for name, hint in hints.items():
        if type(values[name]).__name__ != hint or values[name] > SIZE_LIMIT:
            raise InputError(f"{path}: {name} is {shown(values[name])}")
    if values["n_layer"] > LAYER_LIMIT:
        raise InputError(f"{path}: n_layer is {values['n_layer']}, at most {LAYER_LIMIT} are accepted")
    with naming(path):
        return TransformerConfig(**{name: values[name] for name in hints})


def scheduled_steps(run: Path, every: int, last: int | None) -> list[tuple[int, Path]]:
    """The steps of a run that an uninterrupted one would have saved, ascending.

    Args:
        every: Steps between saves; 0 for the last alone.
        last: The last step; the newest there is if None.
    """
    found = find_steps(run)
    last = found[-1][0] if last is None and found else last
    return [
        (step, folder)
        for step, folder in found
        if step == last or (every > 0 and step > 0 and step % every == 0)
    ]


def keep_newest(run: Path, count: int, every: int, last: int | None) -> None:
    """Delete old steps, so that ``count`` scheduled ones remain, with those saved between on a signal."""
    scheduled = scheduled_steps(run, every, last)
    if len(scheduled) > count:
        oldest = scheduled[-count][0]
        prune(run, sum(step >= oldest for step, _ in find_steps(run)), None)
