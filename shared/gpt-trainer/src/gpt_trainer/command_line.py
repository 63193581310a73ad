"""Flags and TOML file to a configuration: preset, then file, then flags, the last word wins."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.flags import parse_flags

from gpt_trainer.backend import BackendSpec, driver_sees_gpu
from gpt_trainer.config import SECTIONS, TrainConfig
from gpt_trainer.errors import InputError
from gpt_trainer.extra_evaluation import EvaluationSpec, installed_evaluations, refuse_missing
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.origin import Origin, Resumed
from gpt_trainer.presets import CPU_PRESET, GPU_PRESET, PRESETS
from gpt_trainer.settings import (
    changed,
    config_names,
    field_names,
    flag,
    flat,
    overlay,
    overlay_section,
    read_toml,
)

HARMLESS = {
    "steps",
    "schedule_steps",
    "device",
    "data",
    "tokenizer",
    "tokenizer_files",
    "data_cache",
    "workers",
}
"""May change on resume, like all that only reports; data and tokenizer if the tokens stay the same."""
READY_TOKENS = {"shards", "nanogpt"}
LAST_BITS = {"precision", "micro_batch", "deterministic"}
"""May change on resume, but not without other roundings."""


@dataclass(frozen=True)
class Actions:
    """What to do.

    Attributes:
        preset: cpu-demo, gpt2-124m, gpt2-350m, gpt2-774m or gpt2-1.5b.
        config: TOML file with any of these settings.
        out: Folder of the new run (runs/PRESET-N if not given).
        resume: Go on with a run, or from one of its steps.
        init_from: Start from the weights of a run, a step or a Hugging Face GPT-2 folder.
        eval_only: Print the validation loss of --resume or --init-from and end.
        json: With --eval-only, print one JSON object.
        profile: Record this many steps with the framework's profiler.
    """

    preset: str | None = None
    config: Path | None = None
    out: Path | None = None
    resume: Path | None = None
    init_from: Path | None = None
    eval_only: bool = False
    json: bool = False
    profile: int = 0


class Early(NamedTuple):
    """The flags that decide what the others' defaults are."""

    preset: str | None
    config: Path | None
    resume: Path | None
    init_from: Path | None
    device: str | None
    data: str | None
    eval_only: bool


@dataclass(frozen=True)
class Request:
    """What the user asked for, complete.

    Attributes:
        actions: What to do.
        config: The settings.
        options: The backend's own flags.
        preset: The preset's name.
        evaluations: The flags of each extra evaluation that is installed, by its name.
    """

    actions: Actions
    config: TrainConfig
    options: Any
    preset: str
    evaluations: Mapping[str, Any] = field(default_factory=dict)


def read_early(argv: Sequence[str]) -> Early:
    """Find the deciding flags; everything else is left to the full parser."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--preset")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--init-from", "--init_from", type=Path)
    parser.add_argument("--device")
    parser.add_argument("--data")
    parser.add_argument("--eval-only", "--eval_only", action="store_true")
    return Early(**vars(parser.parse_known_args(list(argv))[0]))


def check_early(early: Early) -> None:
    """Refuse what cannot go together.

    Raises:
        InputError: Naming the flags.
    """
    if early.resume is not None:
        for name, value in (("--preset", early.preset), ("--init-from", early.init_from)):
            if value is not None:
                raise InputError(f"{name} {value} does not go with --resume: the run has its own settings")
    elif early.eval_only and early.init_from is None:
        raise InputError("--eval-only needs a model: give --resume or --init-from")


def read_request(
    spec: BackendSpec,
    argv: Sequence[str],
    early: Early,
    *,
    resumed: Resumed | None = None,
    origin: Origin | None = None,
) -> Request:
    """The complete request.

    Args:
        spec: The backend.
        argv: The command's arguments.
        early: What ``read_early`` found in them.
        resumed: The run to go on with, if there is one.
        origin: The model to start from, if there is one.

    Raises:
        InputError: If a name is unknown or values do not fit.
    """
    seen = driver_sees_gpu()
    request = _read_request(spec, argv, early, resumed, origin, gpu=seen)
    # the framework has the last word, and is asked when the command line is known to be good
    if request.config.runtime.device == "auto" and spec.has_gpu() != seen:
        request = _read_request(spec, argv, early, resumed, origin, gpu=not seen)
    return request


def _read_request(
    spec: BackendSpec,
    argv: Sequence[str],
    early: Early,
    resumed: Resumed | None,
    origin: Origin | None,
    *,
    gpu: bool,
) -> Request:
    file = {} if early.config is None else read_toml(early.config)
    preset, base = _base(early, file, resumed, origin, gpu=gpu)
    where = f"--config {early.config}"
    evaluations = installed_evaluations()
    refuse_missing(argv, evaluations)
    brought = _brought(spec, evaluations, resumed)
    _refuse_unknown(file, brought, where)
    # only the final mixture is checked as a whole: a file may set what only a flag makes fit
    base = _with_ready_tokens(base, early.data or file.get("data"), origin)
    sections = {name: overlay_section(getattr(base, name), file, where) for name in SECTIONS}
    brought = {name: overlay_section(options, file, where) for name, options in brought.items()}
    flags = _parse(spec, argv, sections | brought, early)
    config = _compose(flags)
    _check_fit(config, base, resumed, origin)
    given = {name: getattr(flags, name) for name in evaluations}
    return Request(flags.actions, config, flags.backend, preset, given)


def _brought(
    spec: BackendSpec, evaluations: Mapping[str, EvaluationSpec], resumed: Resumed | None
) -> dict[str, Any]:
    """The flags that the backend and the extra evaluations bring, as a resumed run has recorded them."""
    made = {"backend": spec.options(), **{name: known.options() for name, known in evaluations.items()}}
    if resumed is None:
        return made
    recorded = {**resumed.record.evaluations, "backend": resumed.record.options.get(spec.name, {})}
    where = f"the record of {resumed.run}"
    return {name: overlay_section(options, recorded.get(name, {}), where) for name, options in made.items()}


def _refuse_unknown(file: Mapping[str, Any], brought: Mapping[str, Any], where: str) -> None:
    known = config_names() | {"preset"}
    known = known.union(*(field_names(type(options)) for options in brought.values()))
    for name in file:
        if name not in known:
            raise InputError(f"{where}: unknown key {name!r}; known are {', '.join(sorted(known))}")


def _base(
    early: Early, file: dict[str, Any], resumed: Resumed | None, origin: Origin | None, *, gpu: bool
) -> tuple[str, TrainConfig]:
    named = early.preset if early.preset is not None else file.get("preset")
    if resumed is not None:
        if "preset" in file:
            raise InputError("preset in --config does not go with --resume: the run has its own settings")
        return resumed.record.preset, resumed.record.config
    if named is None:
        device = early.device or file.get("device", "auto")
        named = GPU_PRESET if device == "gpu" or (device == "auto" and gpu) else CPU_PRESET
    if named not in PRESETS:
        raise InputError(f"unknown preset {named!r}; choose one of {', '.join(PRESETS)}")
    base = PRESETS[named]
    return named, base if origin is None else _with_origin(base, origin)


def _with_origin(base: TrainConfig, origin: Origin) -> TrainConfig:
    """The preset for a given model: its sizes, its tokenizer, rows that it can hold."""
    model = origin.saved.model
    sizes = {"n_layer": model.n_layer, "n_head": model.n_head, "d_model": model.d_model}
    section = replace(base.model, **sizes, context=min(base.model.context, model.context))
    data = base.data
    if origin.tokenizer is not None:
        data = replace(data, tokenizer=origin.tokenizer, tokenizer_files=origin.tokenizer_files)
    return replace(base, model=section, data=data)


def _with_ready_tokens(base: TrainConfig, data: object, origin: Origin | None) -> TrainConfig:
    """Tokens that are ready know their tokenizer; the preset's is for text."""
    ready = isinstance(data, str) and data.partition(":")[0] in READY_TOKENS
    if not ready or (origin is not None and origin.tokenizer is not None):
        return base
    return replace(base, data=replace(base.data, tokenizer=None))


def _parse(spec: BackendSpec, argv: Sequence[str], sections: Mapping[str, Any], early: Early) -> Any:
    return parse_flags(
        argv,
        {"actions": Actions(preset=early.preset), **sections},
        prog=f"{spec.name}-train",
        description=f"Train a GPT-2 with {spec.name}. Defaults are the preset's; flags have the last word.",
    )


def _compose(flags: Any) -> TrainConfig:
    try:
        return TrainConfig(**{name: getattr(flags, name) for name in SECTIONS})
    except ValueError as error:
        raise InputError(str(error)) from None


def _check_fit(
    config: TrainConfig, base: TrainConfig, resumed: Resumed | None, origin: Origin | None
) -> None:
    if resumed is not None:
        _check_resumed(config, resumed)
    if origin is not None:
        _check_origin(config, base, origin.saved.model)


def _check_resumed(config: TrainConfig, resumed: Resumed) -> None:
    before, now = flat(resumed.record.config), flat(config)
    allowed = HARMLESS | LAST_BITS | field_names(type(config.reports))
    for name in changed(resumed.record.config, config):
        if name not in allowed:
            raise InputError(
                f"{flag(name)} {now[name]} cannot change on resume: {resumed.run} has {before[name]}; "
                "to start a new run from its weights use --init-from"
            )
    if config.schedule.steps < resumed.state.step:
        raise InputError(
            f"--steps {config.schedule.steps}: {resumed.run} has taken {resumed.state.step} already"
        )


def _check_origin(config: TrainConfig, base: TrainConfig, model: ModelConfig) -> None:
    for name in ("n_layer", "n_head", "d_model"):
        if getattr(config.model, name) != getattr(base.model, name):
            raise InputError(
                f"{flag(name)} {getattr(config.model, name)} does not fit the model of --init-from, "
                f"which has {getattr(base.model, name)}"
            )
    if config.model.context > model.context:
        raise InputError(
            f"--context {config.model.context} is longer than the model's: --init-from has "
            f"{model.context} positions"
        )


def with_precision(config: TrainConfig, spec: BackendSpec) -> TrainConfig:
    """The configuration with the precision chosen: bfloat16 on a GPU, float32 on a CPU.

    Args:
        config: The settings.
        spec: The backend.
    """
    if config.runtime.precision is not None:
        return config
    return overlay(config, {"precision": "bfloat16" if on_gpu(config, spec) else "float32"}, "precision")


def on_gpu(config: TrainConfig, spec: BackendSpec) -> bool:
    """Whether the run will use a GPU.

    Args:
        config: The settings.
        spec: The backend.
    """
    return config.runtime.device == "gpu" or (config.runtime.device == "auto" and spec.has_gpu())
