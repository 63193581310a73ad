"""What a run writes down about itself: in ``run.json`` before it starts, in ``trainer.json`` with every step.

Nothing in it belongs to one backend: another one resumes from the same record.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gpt_data.errors import shown

from gpt_trainer.errors import InputError, one_line
from gpt_trainer.run.task import Request, Task, TaskSpec
from gpt_trainer.settings.values import as_json, flat, overlay

PARTS = ("data", "pin", "made_by", "options", "evaluations")
FLAGS = ("options", "evaluations")
LATER = ("pin", *FLAGS)
"""Parts that not all first records have."""
STATE, COUNTED = ("evaluated", "best_loss", "best_step", "measured"), ("tokens", "seconds")
PACKAGES = ("numpy", "gpt-data", "gpt-trainer", "bpe-scratch")


@dataclass
class RunState:
    """What changes while a run goes on, besides weights and the optimizer's state.

    Attributes:
        step: Optimizer steps taken.
        evaluated: Step of the last evaluation; -1 before the first.
        best_loss: Lowest validation loss of a saved step.
        best_step: That step.
        measured: Step of the last other measurements; -1 before the first.
        own: What the task keeps besides, as it gave it.
        tokens: Trained on so far; kept where they decide the end, as is the next.
        seconds: That the steps took, without the first of each process.
    """

    step: int = 0
    evaluated: int = -1
    best_loss: float | None = None
    best_step: int | None = None
    measured: int = -1
    own: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0

    def as_json(self, *, counted: bool = False) -> dict[str, Any]:
        """The trainer's part of the state as JSON values; the step is the checkpoint's own.

        Args:
            counted: Whether tokens or seconds decide the end: equal runs are not equally fast.
        """
        return {name: getattr(self, name) for name in (*STATE, *(COUNTED if counted else ()))}


@dataclass(frozen=True)
class Record:
    """The lasting part: the same in every checkpoint of a run.

    Attributes:
        format: Tells the task.
        config: The configuration, with open choices made.
        preset: The preset that it began as.
        init_from: Where the first weights came from, if not from the seed.
        data: What identifies the data; empty until it is open.
        pin: What a later process needs to read the same version of the data.
        made_by: Backend, device and versions, which decide the last bits.
        options: The flags that only the backend has, kept for a resume with the same one.
        evaluations: The flags of evaluations that other packages bring.
    """

    format: int | str
    config: Any
    preset: str
    init_from: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    pin: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        parts = {name: dict(getattr(self, name)) for name in PARTS}
        plain = {name: getattr(self, name) for name in ("format", "preset", "init_from")}
        return {**plain, "config": flat(self.config), **parts}


def make_record(spec: TaskSpec, request: Request, task: Task, init_from: str | None) -> Record:
    """What a run writes down about itself."""
    given = {name: as_json(options) for name, options in request.options.items()}
    options = {spec.name: given.pop("backend")} if "backend" in given else {}
    return Record(
        spec.format,
        request.config,
        request.preset,
        init_from,
        task.data,
        task.pin,
        {"backend": spec.name, **describe_process(), **task.made_by},
        options,
        given,
    )


def read_record(values: Mapping[str, Any], spec: TaskSpec, where: str) -> Record:
    """A record from the JSON values of a file.

    Raises:
        InputError: If it is another task's, or anything is missing or does not fit.
    """
    if values.get("format") != spec.format:
        found = shown(values.get("format"))
        raise InputError(
            f"{where} has format {found}, expected {spec.format!r}: was it trained by another command?"
        )
    config = values.get("config")
    if isinstance(config, dict):
        config = {name: value for name, value in config.items() if name not in spec.gone}
    names = flat(spec.example).keys()
    if not isinstance(config, dict) or config.keys() | spec.later != names | spec.later:
        raise InputError(f"{where} holds another set of settings than this version knows")
    # the first records have fewer parts
    parts = {name: values.get(name, {} if name in LATER else None) for name in PARTS}
    wrong = [name for name in PARTS if not isinstance(parts[name], dict)]
    wrong += [name for name in FLAGS if name not in wrong and not _holds_flags(parts[name])]
    wrong += [] if isinstance(values.get("preset"), str) else ["preset"]
    wrong += [] if isinstance(values.get("init_from"), str | None) else ["init_from"]
    if wrong:
        shapes = "; ".join(f"{name} is {shown(values.get(name))}" for name in wrong)
        raise InputError(f"{where} is damaged: {shapes}")
    read = overlay(spec.example, config, where)
    return Record(spec.format, read, values["preset"], values.get("init_from"), **parts)


def _holds_flags(part: Mapping[str, Any]) -> bool:
    """Whether each value is a set of flags by name."""
    return all(isinstance(flags, dict) for flags in part.values())


def read_state(
    trainer: Mapping[str, Any], step: int, check: Callable[[Mapping[str, Any], int], list[str]], where: str
) -> RunState:
    """A run's state from the JSON values of a checkpoint.

    Raises:
        InputError: If anything is missing or does not fit.
    """
    state = trainer.get("state")
    if not isinstance(state, dict):
        raise InputError(f"{where} holds no state")
    # a checkpoint that is older than other measurements knows of none, nor one whose steps decide of seconds
    values = {"measured": -1, "tokens": 0, "seconds": 0.0, **state}
    wrong = check(values, step) or _state_faults(values, step)
    if wrong:
        raise InputError(f"{where} is damaged: in the run's state {one_line(wrong)}")
    ours = {name: values[name] for name in (*STATE, *COUNTED)}
    own = {name: value for name, value in values.items() if name not in ours}
    return RunState(step, **ours, own=own)


def _state_faults(values: Mapping[str, Any], step: int) -> list[str]:
    wrong = [name for name in ("evaluated", "measured") if not is_count(values.get(name), -1, step)]
    if values.get("best_loss") is not None or values.get("best_step") is not None:
        wrong += ["best_loss"] if not is_size(values.get("best_loss")) else []
        wrong += ["best_step"] if not is_count(values.get("best_step"), 0, step) else []
    wrong += [] if is_count(values.get("tokens"), 0, sys.maxsize) else ["tokens"]
    wrong += [] if is_size(values.get("seconds")) else ["seconds"]
    return [f"{name} is {shown(values.get(name))}" for name in wrong]


def is_count(value: object, least: int, most: int) -> bool:
    """Whether it is an integer within bounds."""
    # bool is an int in Python, but true is no step
    return type(value) is int and least <= value <= most


def is_size(value: object) -> bool:
    """Whether it is what a norm or a loss can be; the file's reader has refused NaN and infinity."""
    return type(value) is float and value >= 0.0


def describe_process() -> dict[str, Any]:
    """Processors, threads and versions."""
    return {
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
    }


def package_version(package: str) -> str:
    """The version of an installed package."""
    try:
        return version(package)
    except PackageNotFoundError:
        # run from its sources, without being installed
        return "unknown"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not as it was, in words: ``["torch 2.11.0 -> 2.15.0"]``.

    What only one of two backends has, its choices and libraries, goes with the backend's name.
    """
    names = list({**before, **now})
    if before.get("backend") != now.get("backend"):
        names = [name for name in before if name in now]
    moved = [name for name in names if before.get(name) != now.get(name)]
    return [f"{name} {_told(before.get(name))} -> {_told(now.get(name))}" for name in moved]


def _told(value: object) -> object:
    return "unset" if value is None else value
