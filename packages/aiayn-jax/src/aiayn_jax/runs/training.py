"""A whole training run from its settings: data, folder, model, loop, score."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

from gpt_data.errors import StoppedError
from gpt_data.stopping import StopFlag
from gpt_data.store.lock import LOCK_NAME
from gpt_trainer.checkpoint import RunLock, check_writable
from gpt_trainer.errors import STOPPED, InputError
from gpt_trainer.origin import warn
from gpt_trainer.report.display import Display, choose_display
from gpt_trainer.report.metrics import MetricsFile
from gpt_trainer.report.plot import plot_losses
from gpt_trainer.run.folder import create_folder, refuse_existing, write_plan
from gpt_trainer.run.training import PROMISE

from aiayn_jax.config import parameter_count
from aiayn_jax.data.preparation import Prepared, prepare
from aiayn_jax.data.sources import open_corpus
from aiayn_jax.runs.engine import Engine, on_gpu
from aiayn_jax.runs.finish import score_test
from aiayn_jax.runs.loop import Loop, RunParts
from aiayn_jax.runs.record import Record, Resumed, compare_with_before, cut_back, describe_maker
from aiayn_jax.scoring import check_available
from aiayn_jax.settings import RunConfig

MANY_EPOCHS = 200
FIXED_BYTES = 1 << 22


def train(
    config: RunConfig,
    preset: str,
    *,
    out: Path | None = None,
    resumed: Resumed | None = None,
    resume_path: Path | None = None,
) -> int:
    """Train, score, and give the exit status.

    Args:
        out: Folder of a new run; one under ``runs`` if None.
        resumed: The run to go on with; its lock is the caller's.

    Raises:
        CommandError: With one line for the user, as its subclasses say.
        InputError: If the data is unusable.
    """
    stop = StopFlag()
    config = with_precision(config)
    with ExitStack() as stack:
        stack.enter_context(stop.installed(PROMISE))
        run = resumed.run if resumed else stack.enter_context(new_folder(out, preset, config))
        display = choose_display(plain=config.reports.plain, every=config.reports.log_every)
        with ended_at_once(stop):
            prepared = _prepare(config, resumed, stop)
        parts = _assemble(run, config, preset, prepared, display, stop, resumed)
        if resumed is not None:
            compare_with_before(parts.record, resumed)
            cut_back(resumed, resume_path or run)
        write_plan(run, parts.record.as_json())
        parts.metrics = MetricsFile(*_metrics_position(run, resumed))
        stack.callback(parts.metrics.close)
        for line in [*prepared.notes, _heading(parts)]:
            display.say(line)
        step, evaluated = (resumed.step, resumed.evaluated) if resumed else (0, -1)
        saved = step if resumed is not None and resumed.state is not None else -1
        with display:
            loop = Loop(parts, step, evaluated, saved)
            finished = loop.run()
        return _finish(parts, loop.step, finished=finished)


def _metrics_position(run: Path, resumed: Resumed | None) -> tuple[Path, int, int]:
    if resumed is None or resumed.state is None:
        return run, -1, -1
    return run, resumed.step, resumed.evaluated


def with_precision(config: RunConfig) -> RunConfig:
    """The configuration with the precision chosen: bfloat16 on a GPU, float32 on a CPU."""
    if config.runtime.precision is not None:
        return config
    precision: Literal["float32", "bfloat16"] = "bfloat16" if on_gpu(config.runtime) else "float32"
    return replace(config, runtime=replace(config.runtime, precision=precision))


@contextmanager
def new_folder(out: Path | None, preset: str, config: RunConfig) -> Iterator[Path]:
    """A locked folder for a new run; removed again if nothing comes of it.

    Raises:
        InputError: If the folder holds a run.
        WriteError: If it cannot be written, is in use, or has too little space.
    """
    run = create_folder(out, f"aiayn-{preset}")
    with RunLock(run):
        refuse_existing(run)
        try:
            # weights and two moments, of the steps that are kept and the one being written
            step = 12 * parameter_count(config.model_config(config.data.vocab)) + FIXED_BYTES
            check_writable(run, (config.reports.average + 1) * step)
            yield run
        except BaseException:
            with suppress(OSError):
                if [entry.name for entry in run.iterdir()] == [LOCK_NAME]:
                    (run / LOCK_NAME).unlink()
                    run.rmdir()
            raise


@contextmanager
def ended_at_once(stop: StopFlag) -> Iterator[None]:
    """Within, the first signal ends what is done: it asks nobody, and leaves nothing behind.

    Raises:
        StoppedError: If a signal came.
    """
    stop.at_once = True
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError("stopped before the first step; the same command begins again") from None
    finally:
        stop.at_once = False


def _prepare(config: RunConfig, resumed: Resumed | None, stop: StopFlag) -> Prepared:
    pin = dict(resumed.record.pin) if resumed and resumed.record.pin else None
    corpus = open_corpus(config.data, pin=pin, on_notice=warn, should_stop=stop)
    check_available(corpus.score)
    saved = resumed.state if resumed else None
    prepared = prepare(corpus, config, saved.model.tokenizer_json if saved else None)
    epochs = config.schedule.steps / prepared.train.batches_per_epoch
    if epochs > MANY_EPOCHS:
        warn(
            f"this run reads its {len(prepared.train.pairs):,} pairs {epochs:,.0f} times: expect it to "
            "learn them by heart, or choose more --data or fewer --steps"
        )
    return prepared


def _assemble(
    run: Path,
    config: RunConfig,
    preset: str,
    prepared: Prepared,
    display: Display,
    stop: StopFlag,
    resumed: Resumed | None,
) -> RunParts:
    """The model with its weights, and what the run says of itself."""
    model = config.model_config(prepared.tokenizer.vocab_size)
    try:
        engine = Engine(model, config.runtime)
    except ValueError as error:
        raise InputError(str(error)) from None
    if resumed is not None and resumed.state is not None:
        saved = resumed.state
        engine.load(saved.model.parameters, saved.first, saved.second)
    maker = describe_maker(engine.device_name())
    record = Record(config, preset, prepared.identity(), prepared.corpus.pin, maker)
    return RunParts(run, record, engine, prepared, display, stop, overlap=on_gpu(config.runtime))


def _heading(parts: RunParts) -> str:
    model, config = parts.engine.config, parts.record.config
    epochs = config.schedule.steps / parts.prepared.train.batches_per_epoch
    fewer = f" of {config.data.vocab:,} asked for" if model.vocab_size < config.data.vocab else ""
    return (
        f"{parts.run}: {parameter_count(model):,} parameters, vocabulary {model.vocab_size:,}{fewer}, "
        f"{config.schedule.steps:,} steps ({epochs:,.1f} epochs)\n"
        f"aiayn-jax on {parts.engine.device_name()}, {config.runtime.precision}"
    )


def _finish(parts: RunParts, step: int, *, finished: bool) -> int:
    """Score, draw the losses, say what to type next, and give the exit status."""
    say, run = parts.display.say, parts.run
    result = score_test(parts) if finished else None
    if result is None:
        received = parts.stop.received
        signal = received.name if received is not None else "request"
        say(f"stopped by {signal} after step {step}; go on with: aiayn-jax-train --resume {run}")
        return STOPPED
    picture = plot_losses(run)
    if picture is not None:
        say(f"losses drawn in {picture}")
    example = parts.prepared.corpus.test.source[0]
    say(
        f'next: aiayn-jax-translate --model {run} --text "{example}"   or train on: '
        f"aiayn-jax-train --resume {run} --steps {2 * step}"
    )
    return 0
