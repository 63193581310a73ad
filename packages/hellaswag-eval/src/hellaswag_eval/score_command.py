"""``hellaswag-eval``: score a model on HellaSwag and say by which protocol."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gpt_data.display import waiting
from gpt_data.flags import flag, parse_flags
from gpt_data.stopping import StopFlag
from gpt_data.store.writing import write_errors
from gpt_data.terminal import can_show, emit, warn
from gpt_trainer.backend import Precision
from gpt_trainer.errors import InputError, WriteError
from gpt_trainer.origin import check_folder
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hellaswag_eval.huggingface import open_huggingface
from hellaswag_eval.models import TOKENS_PER_BATCH, Device, Model, as_model, choose_backend, open_checkpoint
from hellaswag_eval.protocols import Protocol, allowed_protocols, encode_items
from hellaswag_eval.results import Evaluation, describe, write_answers
from hellaswag_eval.scoring import MOST_SHAPES, Plan
from hellaswag_eval.sources import choose, read_items

HUGGING_FACE = "hf:"
PROMISE = "the batch under way is finished, and nothing is shown; a second signal ends at once"
Report = Callable[[int, int], None]


@dataclass(frozen=True)
class Options:
    """What to score, and how.

    Attributes:
        model: A run, one of its steps, a Hugging Face GPT-2 folder, or hf:FOLDER for transformers' own code.
        backend: gpt-jax, gpt-torchfunc or gpt-triton (the fastest installed one that runs here if not given).
        protocol: completion, harness or both (of both, completion alone if an item has no activity_label);
            their figures cannot be compared with each other.
        data: JSON lines of HellaSwag's items, compressed or not (Rowan/hellaswag from the hub if not given).
        limit: Score only so many items.
        seed: Draw those by this seed, instead of taking the first.
        out: Write each item's log-probabilities and choices into this file, one JSON object per line.
        json: Print JSON, one object per protocol and line.
        plain: No progress bar.
        device: cpu, gpu, or auto.
        precision: Precision of products (bfloat16 on a GPU and float32 on a CPU if not given).
        tokenizer_files: Folder with GPT-2's tokenizer files, for a model that comes without.
        share_context: Compute the context of an item's endings once, on a CPU; not for hf:FOLDER.
        tokens_per_batch: Tokens on the device at a time (65,536 on a GPU, 2,048 on a CPU if not given).
        shapes: Most shapes of batches, each of which a compiling backend compiles once.
    """

    model: str
    backend: str | None = None
    protocol: Literal["completion", "harness", "both"] = "both"
    data: Path | None = None
    limit: int | None = None
    seed: int | None = None
    out: Path | None = None
    json: bool = False
    plain: bool = False
    device: Device = "auto"
    precision: Precision | None = None
    tokenizer_files: Path | None = None
    share_context: bool = True
    tokens_per_batch: int | None = None
    shapes: int = MOST_SHAPES


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0.

    Args:
        argv: Arguments; those of the process if None.

    Raises:
        InputError: If a flag is unknown, the data cannot be read, or model, item or value are unusable.
        WriteError: If ``--out`` cannot be written.
        OutputError: If the standard output does not take the figures.
        EvaluationStoppedError: If a signal came.
    """
    options: Options = parse_flags(
        sys.argv[1:] if argv is None else argv,
        {"scoring": Options},
        prog="hellaswag-eval",
        description="Score a model on HellaSwag.",
    ).scoring
    _check(options)
    items = choose(read_items(options.data), options.limit, options.seed)
    protocols = allowed_protocols(options.protocol, items, warn)
    with waiting("loading the model", plain=options.plain):
        model = _open(options)
    stop = StopFlag()
    evaluations = []
    with stop.installed(PROMISE), progress_bar(plain=options.plain or not sys.stderr.isatty()) as report:
        for protocol in protocols:
            examples = encode_items(items, model.encode, protocol)
            plan = _plan(options, model, report(protocol), stop)
            evaluations.append(model.evaluate(examples, protocol, plan))
    try:
        if options.out is not None:
            write_answers(options.out, evaluations)
    finally:
        # a disk that is full by now takes nothing from what was found
        _print(options, model, evaluations)
    return 0


def _check(options: Options) -> None:
    """Refuse before items and model are read what would be refused after it."""
    for name in ("shapes", "tokens_per_batch", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{flag(name)} {value} is not positive")
    if options.out is not None:
        _check_out(options.out, options.data)
    if options.model.startswith(HUGGING_FACE):
        for name in ("backend", "tokenizer_files"):
            if getattr(options, name) is not None:
                raise InputError(f"{flag(name)} does not go with --model {options.model}")
    else:
        check_folder(Path(options.model))
        choose_backend(options.backend, "cpu")


def _check_out(out: Path, data: Path | None) -> None:
    with write_errors(f"cannot write --out {out}"):
        if not out.parent.is_dir():
            raise WriteError(f"cannot write --out {out}: there is no folder {out.parent}")
        if out.is_dir():
            raise WriteError(f"cannot write --out {out}: it is a folder")
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise WriteError(f"cannot write --out {out}: no permission")
    if data is not None and data.exists() and out.exists() and out.samefile(data):
        raise InputError(f"--out {out} is the file of --data: it would be replaced")


def _open(options: Options) -> Model:
    if options.model.startswith(HUGGING_FACE):
        folder = Path(options.model.removeprefix(HUGGING_FACE))
        return open_huggingface(folder, options.device, options.precision)
    path = Path(options.model)
    opened = open_checkpoint(
        path,
        options.backend,
        device=options.device,
        precision=options.precision,
        tokenizer_files=options.tokenizer_files,
    )
    return as_model(opened, path)


def _plan(options: Options, model: Model, report: Report | None, stop: StopFlag) -> Plan:
    return Plan(
        tokens_per_batch=options.tokens_per_batch or TOKENS_PER_BATCH[model.place],
        most_shapes=options.shapes,
        # a GPU's plain rows are compiled kernels, and no slower
        share=options.share_context and model.place == "cpu",
        on_progress=report,
        should_stop=stop,
    )


@contextmanager
def progress_bar(*, plain: bool) -> Iterator[Callable[[Protocol], Report | None]]:
    """A function that begins a bar for each protocol, on the standard error."""
    if plain:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:

        def begin(protocol: Protocol) -> Report:
            task = bar.add_task(protocol, total=None)
            return lambda done, total: bar.update(task, completed=done, total=total)

        yield begin


def _print(options: Options, model: Model, evaluations: Sequence[Evaluation]) -> None:
    if options.json:
        for evaluation in evaluations:
            values: dict[str, Any] = {**model.description, **evaluation.as_json()}
            emit(json.dumps(values))
        return
    emit(", ".join(f"{name} {value}" for name, value in model.description.items()))
    for evaluation in evaluations:
        line = f"{describe(evaluation)} in {evaluation.seconds:.1f} s, {len(evaluation.shapes)} shapes"
        emit(line if can_show(line) else line.replace("±", "+-"))
