"""What a run writes down about itself: in ``run.json`` before it starts, in ``trainer.json`` with every step.

Nothing in it belongs to one backend: another one resumes from the same record.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import bpe_scratch
from gpt_data.dataset import Dataset
from gpt_data.errors import shown

from gpt_trainer.backend import Backend, BackendSpec
from gpt_trainer.config import TrainConfig
from gpt_trainer.errors import InputError, one_line
from gpt_trainer.settings import config_names, flat, overlay
from gpt_trainer.spikes import SpikeGuard

FORMAT = 1
LATER = {"schedule_steps"}
"""Settings that runs of the first version do not have, and that mean there what they do when not given."""
PACKAGES = ("numpy", "gpt-data", "gpt-trainer", "bpe-scratch")


@dataclass
class RunState:
    """What changes while a run goes on, besides weights and moments.

    Attributes:
        spikes: The running mean of gradient norms.
        step: Optimizer steps taken.
        evaluated: Step of the last evaluation; -1 before the first.
        best_loss: Lowest validation loss of a saved step.
        best_step: That step.
        measured: Step of the last extra evaluations; -1 before the first.
    """

    spikes: SpikeGuard
    step: int = 0
    evaluated: int = -1
    best_loss: float | None = None
    best_step: int | None = None
    measured: int = -1

    def as_json(self) -> dict[str, Any]:
        """The state as JSON values; the step is the checkpoint's own."""
        return {
            "spikes": self.spikes.state(),
            "evaluated": self.evaluated,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "measured": self.measured,
        }


@dataclass(frozen=True)
class Record:
    """The lasting part: the same in every checkpoint of a run.

    Attributes:
        config: The configuration, with open choices made.
        preset: The preset that it began as.
        init_from: Where the first weights came from, if not from the seed.
        data: What identifies the data; empty until it is open.
        made_by: Backend, device and versions, which decide the last bits.
        options: The flags that only the backend has, kept for a resume with the same one.
        evaluations: The flags of evaluations that other packages bring.
    """

    config: TrainConfig
    preset: str
    init_from: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {
            "format": FORMAT,
            "config": flat(self.config),
            "preset": self.preset,
            "init_from": self.init_from,
            "data": dict(self.data),
            "made_by": dict(self.made_by),
            "options": dict(self.options),
            "evaluations": dict(self.evaluations),
        }


def read_record(values: Mapping[str, Any], where: str) -> Record:
    """A record from the JSON values of a file.

    Args:
        values: What ``Record.as_json`` gave.
        where: The file, for messages.

    Raises:
        InputError: If anything is missing or does not fit.
    """
    if values.get("format") != FORMAT:
        raise InputError(f"{where} has format {values.get('format')!r}, expected {FORMAT}")
    config = values.get("config")
    if not isinstance(config, dict) or config.keys() | LATER != config_names():
        raise InputError(f"{where} holds another set of settings than this version knows")
    parts = {name: values.get(name) for name in ("data", "made_by", "options")}
    # a record that is older than extra evaluations has none
    parts["evaluations"] = values.get("evaluations", {})
    wrong = [name for name in ("data", "made_by") if not isinstance(parts[name], dict)]
    wrong += [name for name in ("options", "evaluations") if not _holds_flags(parts[name])]
    wrong += [] if isinstance(values.get("preset"), str) else ["preset"]
    wrong += [] if isinstance(values.get("init_from"), str | None) else ["init_from"]
    if wrong:
        shapes = "; ".join(f"{name} is {shown(values.get(name))}" for name in wrong)
        raise InputError(f"{where} is damaged: {shapes}")
    return Record(
        overlay(TrainConfig(), config, where),
        values["preset"],
        values.get("init_from"),
        **parts,  # type: ignore[arg-type]
    )


def _holds_flags(part: Any) -> bool:
    """Whether each value is a set of flags by name."""
    return isinstance(part, dict) and all(isinstance(flags, dict) for flags in part.values())


def read_state(values: Mapping[str, Any], step: int, factor: float | None, where: str) -> RunState:
    """A run's state from the JSON values of a checkpoint.

    Args:
        values: What ``RunState.as_json`` gave.
        step: The checkpoint's step.
        factor: The configuration's ``skip_spikes``.
        where: The file, for messages.

    Raises:
        InputError: If anything is missing or does not fit.
    """
    # a checkpoint that is older than extra evaluations knows of none
    values = {"measured": -1, **values}
    wrong = _state_faults(values, step)
    if wrong:
        raise InputError(f"{where} is damaged: in the run's state {one_line(wrong)}")
    guard = SpikeGuard(factor, values["spikes"])
    return RunState(
        guard, step, values["evaluated"], values["best_loss"], values["best_step"], values["measured"]
    )


def _state_faults(values: Mapping[str, Any], step: int) -> list[str]:
    spikes = values.get("spikes")
    if not isinstance(spikes, dict):
        return [f"spikes is {shown(spikes)}"]
    least = {"evaluated": -1, "measured": -1, "step": -1, "seen": 0, "earlier_seen": 0}
    found = {**values, **spikes}
    wrong = [name for name, first in least.items() if not _is_count(found.get(name), first, step)]
    wrong += [name for name in ("mean", "earlier_mean") if not _is_size(found.get(name))]
    if values.get("best_loss") is not None or values.get("best_step") is not None:
        wrong += ["best_loss"] if not _is_size(found.get("best_loss")) else []
        wrong += ["best_step"] if not _is_count(found.get("best_step"), 0, step) else []
    return [f"{name} is {shown(found.get(name))}" for name in wrong]


def _is_count(value: object, least: int, most: int) -> bool:
    # bool is an int in Python, but true is no step
    return type(value) is int and least <= value <= most


def _is_size(value: object) -> bool:
    """Whether it is what a norm or a loss can be; the file's reader has refused NaN and infinity."""
    return type(value) is float and value >= 0.0


def describe_data(dataset: Dataset, tokenizer: bpe_scratch.Tokenizer | None) -> dict[str, Any]:
    """What identifies the data.

    Args:
        dataset: The open dataset.
        tokenizer: Its tokenizer, if it has one.
    """
    return {
        "fingerprint": dataset.fingerprint,
        "vocab_size": dataset.vocab_size,
        "tokenizer_sha256": None if tokenizer is None else tokenizer.sha256,
    }


def describe_maker(spec: BackendSpec, backend: Backend) -> dict[str, Any]:
    """Backend, device, threads and versions.

    Args:
        spec: The backend's registration.
        backend: The backend.
    """
    return {
        "backend": spec.name,
        "device": backend.device_name(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        **backend.choices(),
    }


def describe_options(spec: BackendSpec, options: Any) -> dict[str, Any]:
    """The backend's own flags, under the backend's name.

    Args:
        spec: The backend's registration.
        options: An instance of ``spec.options``.
    """
    return {spec.name: asdict(options)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, in words: ``["torch 2.11.0 -> 2.15.0"]``."""
    return [
        f"{name} {before.get(name)} -> {now.get(name)}"
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]
