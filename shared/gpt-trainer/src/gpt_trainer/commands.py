"""The two commands of every backend: train and sample, each failure one line and an exit status."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from gpt_data.stopping import StopFlag
from gpt_data.terminal import emit, guarded
from gpt_data.tokenizers import size_said

from gpt_trainer.backend import BackendSpec
from gpt_trainer.command_line import Request, check_early, on_gpu, read_early, read_request, with_precision
from gpt_trainer.display import choose_display
from gpt_trainer.errors import STOPPED, InputError
from gpt_trainer.evaluation import evaluate
from gpt_trainer.extra_evaluation import prepare_evaluations
from gpt_trainer.launch import (
    check_data,
    choose_prompt,
    create_backend,
    cut_back,
    data_tokenizer,
    load_weights,
    make_loaders,
    make_record,
    model_of,
    new_folder,
    open_data,
    refuse_missing_gpu,
    val_loader,
)
from gpt_trainer.loop import Loop
from gpt_trainer.metrics import MetricsFile
from gpt_trainer.model_config import MODEL_PRESETS, ModelConfig
from gpt_trainer.origin import Origin, Resumed, open_model, open_run, warn
from gpt_trainer.parameters import parameter_count
from gpt_trainer.parts import RunParts
from gpt_trainer.plot import plot_losses
from gpt_trainer.record import Record, RunState, describe_data
from gpt_trainer.run_folder import write_plan
from gpt_trainer.sample_command import sample
from gpt_trainer.schedules import ends
from gpt_trainer.settings import flat
from gpt_trainer.sinks import open_sinks
from gpt_trainer.spikes import SpikeGuard

PROMISE = "the step under way is finished and saved; a second signal ends at once"


def train_main(spec: BackendSpec, argv: Sequence[str] | None = None) -> int:
    """Run ``gpt-*-train`` and return its exit status.

    Args:
        spec: The backend's registration.
        argv: Arguments; those of the process if None.
    """
    return guarded(f"{spec.name}-train", lambda: _train_command(spec, _arguments(argv)))


def sample_main(spec: BackendSpec, argv: Sequence[str] | None = None) -> int:
    """Run ``gpt-*-sample`` and return its exit status.

    Args:
        spec: The backend's registration.
        argv: Arguments; those of the process if None.
    """
    return guarded(f"{spec.name}-sample", lambda: sample(spec, _arguments(argv)))


def _arguments(argv: Sequence[str] | None) -> list[str]:
    return list(sys.argv[1:] if argv is None else argv)


def _train_command(spec: BackendSpec, argv: list[str]) -> int:
    early = read_early(argv)
    check_early(early)
    with ExitStack() as stack:
        stop = StopFlag()
        resumed = None
        if early.resume is not None:
            resumed = open_run(early.resume, None if early.eval_only else stack)
        origin = None if early.init_from is None else open_model(early.init_from)
        request = read_request(spec, argv, early, resumed=resumed, origin=origin)
        if request.actions.eval_only:
            return _evaluate_only(spec, request, resumed, origin, stop)
        return _train(spec, request, resumed, origin, stop, stack)


def _train(
    spec: BackendSpec,
    request: Request,
    resumed: Resumed | None,
    origin: Origin | None,
    stop: StopFlag,
    stack: ExitStack,
) -> int:
    """Set up, train, and say what to type next."""
    request = replace(request, config=with_precision(request.config, spec))
    config = request.config
    refuse_missing_gpu(spec, request)
    run = resumed.run if resumed is not None else stack.enter_context(new_folder(request, stack))
    dataset = open_data(config.data, stop, plain=config.reports.plain or not sys.stderr.isatty())
    stack.callback(dataset.close)
    backend = create_backend(spec, request, model_of(request, dataset, resumed, origin))
    record = make_record(spec, request, backend, dataset, resumed)
    tokenizer = data_tokenizer(dataset)
    evaluations = prepare_evaluations(request.evaluations, backend.config, tokenizer)
    load_weights(backend, request, resumed, origin)
    train, val = make_loaders(config, dataset)
    sinks = open_sinks(config.reports, run, flat(config))
    if resumed is not None:
        assert request.actions.resume is not None, "a run is resumed because of it"
        cut_back(resumed, request.actions.resume)
    write_plan(run, record.as_json())
    state = RunState(SpikeGuard(config.optimizer.skip_spikes)) if resumed is None else resumed.state
    began = state.step if resumed is not None and resumed.checkpoint is not None else -1
    metrics = MetricsFile(run, began, state.evaluated, state.measured)
    stack.callback(metrics.close)
    display = choose_display(plain=config.reports.plain, every=config.reports.log_every)
    parts = RunParts(
        run, record, backend, train, val, tokenizer, display, metrics, sinks, stop,
        request.actions.profile, on_gpu(config, spec), evaluations,
        choose_prompt(config, dataset),
    )  # fmt: skip
    display.say(_heading(spec, parts))
    with stop.installed(PROMISE), display:
        finished = Loop(parts, state, began).run()
    for sink in sinks:
        sink.close()
    return _finish(spec, parts, state, finished=finished)


def _heading(spec: BackendSpec, parts: RunParts) -> str:
    model, config = parts.backend.config, parts.config
    made = ", ".join(f"{name} {value}" for name, value in parts.backend.choices().items())
    return (
        f"{parts.run}: {_sizes(model, parts.record)}, "
        f"{config.schedule.steps} steps of {config.batch.tokens_per_step:,} tokens\n"
        f"{spec.name} on {parts.backend.device_name()}, {config.runtime.precision} ({made})"
    )


def _sizes(model: ModelConfig, record: Record) -> str:
    """Parameters and vocabulary, beside those that the preset's name and the tokenizer's stand for."""
    count, named = parameter_count(model), MODEL_PRESETS.get(record.preset)
    text = f"{count:,} parameters"
    if named is not None and count != parameter_count(named):
        text += f" ({record.preset} itself has {parameter_count(named):,})"
    return f"{text}, vocabulary {size_said(record.config.data.tokenizer, model.vocab_size)}"


def _finish(spec: BackendSpec, parts: RunParts, state: RunState, *, finished: bool) -> int:
    """Draw the losses, say what to type next, and give the exit status."""
    name = spec.name
    if not finished:
        signal = parts.stop.received.name if parts.stop.received is not None else "request"
        parts.display.say(
            f"stopped by {signal} after step {state.step}; go on with: {name}-train --resume {parts.run}"
        )
        return STOPPED
    picture = plot_losses(parts.run)
    if picture is not None:
        parts.display.say(f"losses drawn in {picture}")
    prompt = f" --prompt {shlex.quote(parts.prompt)}" if parts.prompt else ""
    schedule = parts.config.schedule
    stay = f" --schedule-steps {schedule.schedule_steps or schedule.steps}" if ends(schedule.schedule) else ""
    parts.display.say(
        f"next: {name}-sample --model {parts.run}{prompt}   or train on: {name}-train --resume {parts.run} "
        f"--steps {2 * state.step}{stay}"
    )
    return 0


def _evaluate_only(
    spec: BackendSpec, request: Request, resumed: Resumed | None, origin: Origin | None, stop: StopFlag
) -> int:
    """Print the validation loss of a model that exists."""
    request = replace(request, config=with_precision(request.config, spec))
    config = request.config
    if resumed is not None and resumed.checkpoint is None:
        raise InputError(f"{resumed.run} has no checkpoint yet: there is nothing to evaluate")
    warn(f"scored on the held-out text of --data {config.data.data}, tokenizer {config.data.tokenizer}")
    refuse_missing_gpu(spec, request)
    dataset = open_data(config.data, stop, plain=config.reports.plain or not sys.stderr.isatty())
    backend = create_backend(spec, request, model_of(request, dataset, resumed, origin))
    if resumed is not None:
        check_data(config, resumed, describe_data(dataset, data_tokenizer(dataset)))
    load_weights(backend, request, resumed, origin)
    val = val_loader(config, dataset)
    if val is None:
        raise InputError(f"--data {config.data.data} has no validation text to evaluate on")
    with stop.installed():
        found = evaluate(backend, val, config.reports.eval_rows, stop)
    if found is None:
        return STOPPED
    step = 0 if resumed is None else resumed.state.step
    values = {
        "step": step,
        "val_loss": found.loss,
        "perplexity": found.perplexity,
        "val_targets": found.targets,
    }
    if request.actions.json:
        emit(json.dumps(values))
    else:
        emit(f"{found}, {found.targets:,} tokens")
    return 0
