"""``aiayn-jax-translate``: a line out for every line in."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import bpe_scratch
from gpt_data.flags import parse_flags
from gpt_trainer.checkpoint.discovery import is_step
from gpt_trainer.checkpoint.load import step_or_newest
from gpt_trainer.errors import InputError
from gpt_trainer.origin import run_of_step, warn

from aiayn_jax.averaging import average
from aiayn_jax.data.pairs import LineFile, read_lines
from aiayn_jax.data.preparation import read_tokenizer
from aiayn_jax.data.sources import Score
from aiayn_jax.plan import make_plan
from aiayn_jax.runs.checkpoints import SavedModel, load_model, scheduled_steps
from aiayn_jax.runs.record import read_record
from aiayn_jax.scoring import check_available, score
from aiayn_jax.translation import Decoding, Translator
from aiayn_jax.tree import from_named

COMMAND = "aiayn-jax-translate"
INTERRUPTED = 130
CHUNK_LINES = 1024


@dataclass(frozen=True)
class TranslateOptions:
    """What to translate, and how.

    Attributes:
        model: A run or one of its steps.
        text: Translate this text.
        input: Translate the lines of this file (the standard input if neither is given).
        reference: File with a translation of each line, to score against.
        average: Checkpoints of a run to average (as many as it was scored with, if not given).
        beam: Translations kept at each position; 1 is greedy.
        length_penalty: Exponent that keeps beam search from preferring short translations.
        batch: Lines that are translated together.
        device: cpu, gpu, or auto.
        precision: Precision of products.
    """

    model: Path
    text: str | None = None
    input: Path | None = None
    reference: Path | None = None
    average: int | None = None
    beam: int = 4
    length_penalty: float = 0.6
    batch: int = 64
    device: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"


class Loaded(NamedTuple):
    """A model that is ready to translate, and the kind of score that its run counts."""

    translator: Translator
    params: Any
    numbers: bool


def translate(argv: Sequence[str]) -> int:
    """Print translations; the exit status is 0, or 130 if interrupted.

    Raises:
        InputError: If the model, a file or a value is unusable.
        DataError: If a line is not UTF-8.
    """
    options = _parse(argv)
    try:
        return _translate(options)
    except KeyboardInterrupt:
        return INTERRUPTED


def _translate(options: TranslateOptions) -> int:
    lines, reference = _input(options), None
    if options.reference is not None:
        lines = list(lines)
        reference = _reference(options.reference, lines)
    loaded = load(options)
    name: Score = "exact_match" if loaded.numbers else "bleu"
    if reference is not None:
        check_available(name)
    decoding = Decoding(options.beam, options.length_penalty, options.batch)
    found: list[str] = []
    for chunk in _chunks(lines):
        found += loaded.translator.translate(loaded.params, chunk, decoding, first_line=len(found) + 1)
        if not _print(found[-len(chunk) :]):
            return 0
    if reference is not None:
        print(f"{COMMAND}: {score(name, found, reference)}", file=sys.stderr)
    return 0


def _parse(argv: Sequence[str]) -> TranslateOptions:
    flags = parse_flags(
        argv,
        {"translation": TranslateOptions},
        prog=COMMAND,
        description="Translate with a trained encoder-decoder: a line out for every line in.",
    )
    options: TranslateOptions = flags.translation
    if options.text is not None and options.input is not None:
        raise InputError("--text and --input do not go together")
    for name in ("beam", "batch", "average"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value} is not positive")
    if not options.length_penalty >= 0:
        raise InputError(f"--length-penalty {options.length_penalty} is negative")
    return options


def _input(options: TranslateOptions) -> Iterator[str] | list[str]:
    if options.text is not None:
        return options.text.split("\n")
    return iter(LineFile(options.input if options.input is not None else Path("/dev/stdin")))


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


def _print(translations: list[str]) -> bool:
    """Print the lines; False if nobody reads them any more."""
    try:
        print("\n".join(translations), flush=True)
    except BrokenPipeError:
        # the reader has what it wanted; the interpreter's own flush must not fail after it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def load(options: TranslateOptions) -> Loaded:
    """The model that the options name, on its device.

    Raises:
        InputError: If there is none, or it is damaged, or this machine lacks what was asked for.
    """
    saved = _saved(options)
    tokenizer: bpe_scratch.Tokenizer = read_tokenizer(saved.tokenizer_json)
    if tokenizer.vocab_size != saved.config.vocab_size:
        raise InputError(
            f"{options.model}: the tokenizer has {tokenizer.vocab_size} ids, "
            f"the model {saved.config.vocab_size}"
        )
    try:
        plan = make_plan(saved.config, precision=options.precision, device=options.device)
    except ValueError as error:
        raise InputError(str(error)) from None
    record = read_record(saved.trainer, f"trainer.json of step {saved.step}")
    translator = Translator(saved.config, plan, tokenizer)
    return Loaded(
        translator,
        from_named(saved.parameters, saved.config, plan.device),
        record.config.data.data == "numbers",
    )


def _saved(options: TranslateOptions) -> SavedModel:
    """The named step; of a run the mean of its last ones."""
    path = options.model
    newest = step_or_newest(path, load_model, warn)
    if is_step(path):
        return newest
    run = run_of_step(path)
    config = read_record(newest.trainer, f"trainer.json of step {newest.step}").config
    count = options.average if options.average is not None else config.reports.average
    steps = scheduled_steps(run, config.reports.save_every, config.schedule.steps)
    folders = [folder for step, folder in steps if step <= newest.step][-count:]
    if count == 1 or not folders:
        return newest
    return newest._replace(parameters=average([load_model(folder).parameters for folder in folders]))
