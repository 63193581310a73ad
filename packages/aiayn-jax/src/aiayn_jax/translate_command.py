"""``aiayn-jax-translate``: a line out for every line in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.display import waiting
from gpt_data.errors import naming
from gpt_data.stopping import SOON, StopFlag
from gpt_data.terminal import INTERRUPTED, emit, warn
from gpt_trainer.checkpoint import step_or_newest
from gpt_trainer.checkpoint.discovery import is_step
from gpt_trainer.errors import InputError
from gpt_trainer.origin import parse_tokenizer, run_of_step
from gpt_trainer.run.record import read_record

from aiayn_jax import TRANSLATE
from aiayn_jax.averaging import average
from aiayn_jax.checkpoints import Saved, load_model, scheduled_steps
from aiayn_jax.data.pairs import LineFile, read_lines
from aiayn_jax.data.sources import Score
from aiayn_jax.plan import make_plan
from aiayn_jax.scoring import check_available, score
from aiayn_jax.spec import SPEC
from aiayn_jax.translate_options import TranslateOptions
from aiayn_jax.translation import Decoding, Translator
from aiayn_jax.tree import from_named

CHUNK_LINES = 1024


class Loaded(NamedTuple):
    """A model that is ready to translate, and the kind of score that its run counts."""

    translator: Translator
    params: Any
    numbers: bool


def translate(options: TranslateOptions) -> int:
    """Print translations; the exit status is 0, or 130 if a signal came.

    Raises:
        InputError: If the model, a file or a value is unusable, or a line is not UTF-8.
        KeyboardInterrupt: If a signal came while a line was waited for, or before the first.
    """
    stop = StopFlag()
    with stop.installed(SOON, after=1.0):
        stop.at_once = True
        _translate(options, stop)
    return INTERRUPTED if stop() else 0


def _translate(options: TranslateOptions, stop: StopFlag) -> None:
    lines, reference = _input(options), None
    if options.reference is not None:
        lines = list(lines)
        reference = _reference(options.reference, lines)
    with waiting("loading the model"):
        loaded = load(options)
    name: Score = "exact_match" if loaded.numbers else "bleu"
    if reference is not None:
        check_available(name)
    decoding = Decoding(options.beam, options.length_penalty, min(options.batch, CHUNK_LINES))
    found: list[str] = []
    for number, chunk in enumerate(_chunks(lines)):
        first = number * CHUNK_LINES + 1
        # XLA is not to be left in the middle of its work: Python's end takes from under it what it works on
        stop.at_once = False
        translations = loaded.translator.translate_until(
            loaded.params, chunk, decoding, stop, first_line=first
        )
        stop.at_once = True
        if stop() or translations is None:
            return
        emit("\n".join(translations))
        found += [] if reference is None else translations
    if reference is not None:
        warn(f"{TRANSLATE}: {score(name, found, reference)}")


def _input(options: TranslateOptions) -> Iterator[str] | list[str]:
    if options.text is not None:
        return options.text.split("\n")
    return iter(LineFile(options.input, piped=True))


def _reference(path: Path, lines: Sequence[str]) -> list[str]:
    reference = read_lines(path)
    if len(reference) != len(lines):
        raise InputError(f"{len(lines):,} lines to translate, but --reference {path} has {len(reference):,}")
    return reference


def _chunks(lines: Iterator[str] | list[str]) -> Iterator[list[str]]:
    """Lines in portions, so that a long input is answered while it is read."""
    chunk: list[str] = []
    for line in lines:
        chunk.append(line)
        if len(chunk) == CHUNK_LINES:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def load(options: TranslateOptions) -> Loaded:
    """The model that the options name, on its device.

    Raises:
        InputError: If there is none, or it is damaged, or this machine lacks what was asked for.
    """
    saved = _saved(options)
    tokenizer = parse_tokenizer(saved.tokenizer_json, str(options.model))
    if tokenizer.vocab_size != saved.config.vocab_size:
        raise InputError(
            f"{options.model}: the tokenizer has {tokenizer.vocab_size} ids, "
            f"the model {saved.config.vocab_size}"
        )
    with naming():
        plan = make_plan(saved.config, precision=options.precision, device=options.device)
    record = read_record(saved.trainer, SPEC, f"trainer.json of step {saved.step}")
    translator = Translator(saved.config, plan, tokenizer)
    return Loaded(
        translator,
        from_named(saved.parameters, saved.config, plan.device),
        record.config.data.data == "numbers",
    )


def _saved(options: TranslateOptions) -> Saved:
    """The named step; of a run the mean of its last ones."""
    path = options.model
    newest = step_or_newest(path, load_model, warn)
    if is_step(path):
        return newest
    run = run_of_step(path)
    config = read_record(newest.trainer, SPEC, f"trainer.json of step {newest.step}").config
    count = options.average if options.average is not None else config.reports.average
    steps = scheduled_steps(run, config.reports.save_every, config.schedule.last)
    folders = [folder for step, folder in steps if step <= newest.step][-count:]
    if count == 1 or not folders:
        return newest
    return newest._replace(parameters=average([load_model(folder).parameters for folder in folders]))
