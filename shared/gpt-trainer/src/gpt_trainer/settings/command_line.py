"""Flags and TOML file to a configuration: preset, then file, then flags, the last word wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.display import waiting
from gpt_data.flags import EarlyParser, flag, parse_flags
from gpt_data.store.lock import FolderLock

from gpt_trainer.errors import InputError
from gpt_trainer.evaluate.extra import refuse_missing
from gpt_trainer.machine import driver_sees_gpu
from gpt_trainer.ranks.place import ALONE, Place
from gpt_trainer.run.folder import holds_run
from gpt_trainer.run.start import Continued, Fresh, existing_run
from gpt_trainer.run.task import Request, TaskSpec
from gpt_trainer.settings.sections import decided_anew
from gpt_trainer.settings.values import compose, field_names, overlay_section, read_toml, sections


class Early(NamedTuple):
    """The flags that decide what the others' defaults are."""

    preset: str | None
    config: Path | None
    out: Path | None
    resume: Path | None
    init_from: Path | None
    device: str | None
    data: str | None
    devices: int
    eval_only: bool


def read_command(
    spec: TaskSpec, argv: Sequence[str], early: Early, place: Place, locks: ExitStack
) -> tuple[Fresh, Request]:
    """How the run begins, and the complete request.

    Args:
        early: From ``read_early``.
        place: Where this process stands among those of the run.
        locks: Holds the lock of a run that goes on; rank 0 has it for all.

    Raises:
        InputError: If a name is unknown, values do not fit, or there is nothing to begin from.
        WriteError: If another process holds the run.
    """
    early = _again(early, place)
    if early.resume is not None and not early.eval_only and place.rank == 0:
        locks.enter_context(FolderLock(existing_run(early.resume)))
    start = choose_start(spec, early)
    request = read_request(spec, argv, early, start, place)
    if early.eval_only and early.resume is None and early.init_from is None:
        raise InputError("--eval-only needs a model: give --resume or --init-from")
    return start, request


def choose_start(spec: TaskSpec, early: Early) -> Fresh:
    """The way that the deciding flags name.

    Raises:
        InputError: If there is nothing to begin from, or it is damaged.
    """
    if early.resume is not None:
        return Continued(spec, early.resume)
    if early.init_from is not None and spec.from_model is not None:
        found: Fresh = spec.from_model(spec, early.init_from)
        return found
    return Fresh(spec)


def read_early(argv: Sequence[str]) -> Early:
    """Find the deciding flags; everything else is left to the full parser.

    Raises:
        InputError: If two of them do not go together.
    """
    parser = EarlyParser()
    parser.add_argument("--preset")
    parser.add_argument("--device")
    parser.add_argument("--data")
    parser.add_argument("--devices", type=_devices, default=1)
    for name in ("config", "out", "resume", "init-from"):
        parser.add_argument(*dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}")), type=Path)
    parser.add_argument("--eval-only", "--eval_only", action="store_true")
    early = Early(**vars(parser.parse_known_args(list(argv))[0]))
    if early.devices < 1:
        raise InputError("--devices takes a number of devices, 1 or more")
    if early.resume is not None:
        for name in ("preset", "init_from", "out"):
            if getattr(early, name) is not None:
                given = f"{flag(name)} {getattr(early, name)}"
                raise InputError(f"{given} does not go with --resume: the run has its own")
    return early


def _again(early: Early, place: Place) -> Early:
    """The deciding flags of a process that was started again, as torchrun does when one is lost: to go on.

    Raises:
        InputError: If it could not find its run again.
    """
    named = early.out or early.resume
    if place.restarts and named is None:
        raise InputError("--max-restarts needs --out or --resume: the run is to be found again")
    if not place.attempt or early.out is None or not holds_run(early.out):
        return early
    return early._replace(resume=early.out, out=None, preset=None, init_from=None)


def _devices(word: str) -> int:
    """A number, or 0 for what is none: the full parser says it less shortly."""
    return int(word) if word.isascii() and word.isdecimal() else 0


def read_request(
    spec: TaskSpec, argv: Sequence[str], early: Early, start: Fresh, place: Place = ALONE
) -> Request:
    """The complete request.

    Args:
        early: From ``read_early``.
        start: How the run begins.
        place: Where this process stands among those of the run.

    Raises:
        InputError: If a name is unknown or values do not fit.
    """
    seen = driver_sees_gpu()
    request = _read(spec, argv, early, start, gpu=seen)
    device = request.config.runtime.device
    # the framework, seconds to import, has the last word once the command line is known to be good
    with waiting("starting", plain=place.rank > 0):
        gpu = device == "gpu" or (device == "auto" and spec.has_gpu())
    if device == "auto" and gpu != seen:
        request = _read(spec, argv, early, start, gpu=gpu)
    runtime = request.config.runtime
    if runtime.precision is None:
        runtime = replace(runtime, precision="bfloat16" if gpu else "float32")
    return replace(request, gpu=gpu, config=replace(request.config, runtime=runtime))


def _read(spec: TaskSpec, argv: Sequence[str], early: Early, start: Fresh, *, gpu: bool) -> Request:
    file = {} if early.config is None else read_toml(early.config)
    preset, base = start.base(early, file, gpu=gpu)
    refuse_missing(argv, [name for name in spec.options if name != "backend"])
    parts = {**dict(sections(base)), **start.options()}
    _refuse_unknown(file, parts, early)
    parts["schedule"] = decided_anew(parts["schedule"], file)
    # only the final mixture is checked as a whole: a file may set what only a flag makes fit
    parts = {name: overlay_section(part, file, f"--config {early.config}") for name, part in parts.items()}
    typed = {word.partition("=")[0][2:].replace("-", "_") for word in argv if word.startswith("--")}
    parts["schedule"] = decided_anew(parts["schedule"], typed)
    flags = parse_flags(
        argv,
        {"actions": spec.actions(preset=early.preset), **parts},
        prog=spec.name + spec.suffix,
        description=f"Train {spec.title}. Defaults are the preset's (--preset NAME --help shows them); "
        "flags have the last word.",
    )
    config = compose(base, {name: getattr(flags, name) for name, _ in sections(base)})
    start.check(config, base)
    options = {name: getattr(flags, name) for name in spec.options}
    return Request(flags.actions, config, options, preset)


def _refuse_unknown(file: Mapping[str, Any], parts: Mapping[str, Any], early: Early) -> None:
    known = {"preset"}.union(*(field_names(type(part)) for part in parts.values()))
    for name in file:
        if name not in known:
            where = f"--config {early.config}"
            raise InputError(f"{where}: unknown key {name!r}; known are {', '.join(sorted(known))}")
