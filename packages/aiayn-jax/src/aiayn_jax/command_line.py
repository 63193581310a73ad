"""Flags and TOML file to a configuration: preset, then file, then flags, the last word wins."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.flags import parse_flags
from gpt_trainer.errors import InputError
from gpt_trainer.settings.values import field_names, flag, flat, overlay_section, read_toml

from aiayn_jax.commands import TRAIN
from aiayn_jax.runs.record import LAST_BITS, Resumed
from aiayn_jax.settings import PRESET_OF, RUN_PRESETS, SECTIONS, DataSection, RunConfig

HARMLESS = {"steps", "device", "data", "val", "test"}
"""May change on resume, like all that only reports; the data if its tokens stay the same."""


@dataclass(frozen=True)
class Actions:
    """What to do.

    Attributes:
        preset: demo, small, base or big (if not given, the one that suits the data).
        config: TOML file with any of these settings.
        out: Folder of the new run (runs/aiayn-PRESET-N if not given).
        resume: Go on with a run, or from one of its steps.
    """

    preset: str | None = None
    config: Path | None = None
    out: Path | None = None
    resume: Path | None = None


class Early(NamedTuple):
    """The flags that decide what the others' defaults are."""

    preset: str | None
    config: Path | None
    resume: Path | None
    data: str | None


@dataclass(frozen=True)
class Request:
    """What the user asked for, complete.

    Attributes:
        actions: What to do.
        config: The settings.
        preset: The preset's name.
    """

    actions: Actions
    config: RunConfig
    preset: str


def read_early(argv: Sequence[str]) -> Early:
    """Find the deciding flags; everything else is left to the full parser.

    Raises:
        InputError: If --preset goes with --resume.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--data")
    early = Early(**vars(parser.parse_known_args(list(argv))[0]))
    if early.resume is not None and early.preset is not None:
        raise InputError(f"--preset {early.preset} does not go with --resume: the run has its own settings")
    return early


def read_request(argv: Sequence[str], early: Early, resumed: Resumed | None) -> Request:
    """The complete request.

    Raises:
        InputError: If a name is unknown or values do not fit.
    """
    file = {} if early.config is None else read_toml(early.config)
    where = f"--config {early.config}"
    _refuse_unknown(file, where)
    preset, base = _base(early, file, resumed)
    # only the final mixture is checked as a whole: a file may set what only a flag makes fit
    sections = {name: overlay_section(getattr(base, name), file, where) for name in SECTIONS}
    flags = _parse(argv, sections, early)
    try:
        config = RunConfig(**{name: getattr(flags, name) for name in SECTIONS})
    except ValueError as error:
        raise InputError(str(error)) from None
    if resumed is not None:
        _check_resumed(config, resumed)
    return Request(flags.actions, config, preset)


def _refuse_unknown(file: Mapping[str, Any], where: str) -> None:
    known = {*flat(RunConfig()), "preset"}
    for name in file:
        if name not in known:
            raise InputError(f"{where}: unknown key {name!r}; known are {', '.join(sorted(known))}")


def _base(early: Early, file: Mapping[str, Any], resumed: Resumed | None) -> tuple[str, RunConfig]:
    if resumed is not None:
        if "preset" in file:
            raise InputError("preset in --config does not go with --resume: the run has its own settings")
        return resumed.record.preset, resumed.record.config
    data = early.data or file.get("data", DataSection().data)
    fitting = PRESET_OF.get(str(data).partition(":")[0], "small")
    named = early.preset or file.get("preset", fitting)
    if named not in RUN_PRESETS:
        raise InputError(f"unknown preset {named!r}; choose one of {', '.join(RUN_PRESETS)}")
    return named, RUN_PRESETS[named]


def _parse(argv: Sequence[str], sections: Mapping[str, Any], early: Early) -> Any:
    return parse_flags(
        argv,
        {"actions": Actions(preset=early.preset), **sections},
        prog=TRAIN,
        description=(
            "Train the Transformer of 'Attention Is All You Need'. Defaults are the preset's; flags have "
            "the last word."
        ),
    )


def _check_resumed(config: RunConfig, resumed: Resumed) -> None:
    before, now = flat(resumed.record.config), flat(config)
    allowed = HARMLESS | {*LAST_BITS} | field_names(type(config.reports))
    for name in before:
        if before[name] != now[name] and name not in allowed:
            raise InputError(
                f"{flag(name)} {now[name]} cannot change on resume: {resumed.run} has {before[name]}"
            )
    if config.schedule.steps < resumed.step:
        raise InputError(f"--steps {config.schedule.steps}: {resumed.run} has taken {resumed.step} already")
