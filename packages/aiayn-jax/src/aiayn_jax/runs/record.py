"""What a run writes down about itself, and reading it back to go on."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.errors import shown
from gpt_trainer.checkpoint import RunLock, find_steps
from gpt_trainer.checkpoint.discovery import is_step
from gpt_trainer.checkpoint.load import step_or_newest
from gpt_trainer.errors import InputError
from gpt_trainer.origin import run_of_step, warn
from gpt_trainer.run.folder import read_plan, set_aside_later
from gpt_trainer.run.record import differences
from gpt_trainer.settings.values import flat, overlay_section

from aiayn_jax.runs.checkpoints import SavedState, load_state
from aiayn_jax.settings import SECTIONS, RunConfig

FORMAT = "aiayn run"
LAST_BITS = ("precision", "unroll", "wide_logits", "attention")
"""May change on resume, but not without other roundings."""
PACKAGES = ("gpt-jax", "jax", "jaxlib", "numpy")


@dataclass(frozen=True)
class Record:
    """The lasting part: the same in every checkpoint of a run.

    Attributes:
        config: The configuration, with open choices made.
        preset: The preset that it began as.
        data: What identifies the data; empty until it is read.
        pin: What a later process needs to read the same version of the data.
        made_by: Device and versions, which decide the last bits.
    """

    config: RunConfig
    preset: str
    data: Mapping[str, Any] = field(default_factory=dict)
    pin: Mapping[str, str] = field(default_factory=dict)
    made_by: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        parts = {name: dict(getattr(self, name)) for name in ("data", "pin", "made_by")}
        return {"format": FORMAT, "config": flat(self.config), "preset": self.preset, **parts}


class Resumed(NamedTuple):
    """A run that goes on.

    Attributes:
        run: Its folder.
        record: What it wrote down about itself.
        state: The step that it goes on from; None if it never reached its first checkpoint.
    """

    run: Path
    record: Record
    state: SavedState | None

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return 0 if self.state is None else self.state.model.step

    @property
    def evaluated(self) -> int:
        """Step of the last evaluation; -1 before the first."""
        return -1 if self.state is None else int(self.state.model.trainer["evaluated"])


def open_run(path: Path, locks: ExitStack) -> Resumed:
    """Lock a run and load the step that it goes on from.

    Raises:
        InputError: If there is nothing to resume, or it is damaged.
        WriteError: If another process holds the run.
    """
    run = run_of_step(path)
    if not path.is_dir():
        raise InputError(f"--resume {path}: there is no such folder")
    locks.enter_context(RunLock(run))
    plan = None if is_step(path) or find_steps(run) else read_plan(run)
    if plan is not None:
        return Resumed(run, read_record(plan, str(run / "run.json")), None)
    state = step_or_newest(path, load_state, warn)
    where = f"trainer.json of step {state.model.step} in {run}"
    evaluated = state.model.trainer.get("evaluated")
    if type(evaluated) is not int or not -1 <= evaluated <= state.model.step:
        raise InputError(f"{where}: evaluated is {shown(evaluated)}, not a step that was taken")
    return Resumed(run, read_record(state.model.trainer, where), state)


def read_record(values: Mapping[str, Any], where: str) -> Record:
    """A record from the JSON values of a file.

    Raises:
        InputError: If it is of another kind, or anything is missing or does not fit.
    """
    if values.get("format") != FORMAT:
        raise InputError(
            f"{where} is not that of an encoder-decoder's run; was it trained by another command?"
        )
    preset = values.get("preset")
    parts: dict[str, Any] = {name: values.get(name) for name in ("config", "data", "pin", "made_by")}
    whole = all(isinstance(part, dict) for part in parts.values())
    config = parts.pop("config")
    if not whole or not isinstance(preset, str) or config.keys() != flat(RunConfig()).keys():
        raise InputError(f"{where} is damaged: config, preset, data, pin or made_by is missing or incomplete")
    default = RunConfig()
    sections = {name: overlay_section(getattr(default, name), config, where) for name in SECTIONS}
    try:
        return Record(RunConfig(**sections), preset, **parts)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from None


def describe_maker(device: str) -> dict[str, Any]:
    """Device, processors, threads and versions."""
    return {
        "device": device,
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
        "python": platform.python_version(),
        "platform": sys.platform,
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # run from its sources, without being installed
        return "unknown"


def compare_with_before(record: Record, resumed: Resumed) -> None:
    """Refuse other data than the run was trained on; warn of what may change the last bits.

    Raises:
        InputError: If the data's tokens are others.
    """
    before = resumed.record
    other = differences(before.data, record.data) if before.data else []
    if other:
        raise InputError(
            f"--data {record.config.data.data} is other data than {resumed.run} was trained on "
            f"({'; '.join(other)}); start a new run"
        )
    found = differences(before.made_by, record.made_by) if before.made_by else []
    old, new = (flat(one.config) for one in (before, record))
    found += [f"{name} {old[name]} -> {new[name]}" for name in LAST_BITS if old[name] != new[name]]
    if found:
        warn(f"the run may differ in its last bits from an uninterrupted one: {'; '.join(found)}")


def cut_back(resumed: Resumed, path: Path) -> None:
    """If the user named a step that is not the newest, set the later ones aside."""
    if resumed.state is not None and is_step(path):
        later = set_aside_later(resumed.run, resumed.step)
        if later:
            warn(f"steps {', '.join(map(str, later))} are set aside as superseded-step-...")
