"""What all competitors have in common, as one TOML file that every trainer reads with ``--config``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpt_trainer.errors import InputError, WriteError
from gpt_trainer.gpt2.presets import CPU_PRESET, GPU_PRESET, PRESETS
from gpt_trainer.gpt2.settings import GPTReportSection, TrainConfig
from gpt_trainer.settings.command_line import Early
from gpt_trainer.settings.values import flat, overlay

from gpt_compare.competitor import Competitor, find_spec

PLAN_NAME = "plan.toml"
STEPS, WARMUP = 200, 40
"""Enough for steady speed and for the curves to part, if they do. With a warm-up of 12 steps cpu-demo's large
learning rate makes of roundings half a percent of loss, with 40 a thousandth of that."""


def choose_device(asked: str | None, competitors: Sequence[Competitor]) -> str:
    """``gpu`` or ``cpu`` for all: one competitor on a GPU and one on a CPU would compare nothing."""
    if asked in ("gpu", "cpu"):
        return asked
    return "gpu" if any(map(_has_gpu, {competitor.name for competitor in competitors})) else "cpu"


def _has_gpu(name: str) -> bool:
    try:
        return find_spec(name).has_gpu()
    except (InputError, ImportError):
        # its own process will say why
        return False


def base_of(early: Early, device: str) -> tuple[str, TrainConfig]:
    """The preset's name, and its settings with few steps of one micro-batch each.

    Raises:
        InputError: If there is no such preset.
    """
    name = early.preset or (GPU_PRESET if device == "gpu" else CPU_PRESET)
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    preset = PRESETS[name]
    changes = {
        "tokens_per_step": preset.batch.micro_batch * preset.model.context,
        "steps": STEPS,
        "warmup": WARMUP,
        "device": device,
        "precision": "bfloat16" if device == "gpu" else "float32",
    }
    return name, overlay(preset, changes, name)


def undisturbed(config: TrainConfig) -> TrainConfig:
    """The same run with nothing between its steps: evaluated before the first and after the last."""
    rows, steps = config.reports.eval_rows, config.schedule.steps
    reports = GPTReportSection(
        eval_every=steps, eval_rows=rows, save_every=0, keep_last=1, sample_every=0, plain=True
    )
    return replace(config, reports=reports)


def write_plan(folder: Path, config: TrainConfig) -> Path:
    """Write the settings as TOML.

    Args:
        config: The settings; TOML has no word for those that are None, which is their default.

    Returns:
        The file's path.

    Raises:
        WriteError: If it cannot be written.
    """
    # a JSON string, number or truth value is also TOML's
    given = {name: value for name, value in flat(config).items() if value is not None}
    path = folder / PLAN_NAME
    try:
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in given.items()), "utf-8")
    except OSError as error:
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from None
    return path
