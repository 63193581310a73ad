"""The command ``gpt-data-prepare``: flags, a progress display, and one line for each failure."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from gpt_data.dataset import Dataset
from gpt_data.errors import DataStoppedError
from gpt_data.flags import parse_flags
from gpt_data.prepare import prepare
from gpt_data.progress import OnProgress, Progress
from gpt_data.settings import MAX_DOCUMENT_BYTES, SHARD_TOKENS
from gpt_data.stopping import StopFlag
from gpt_data.terminal import emit, guarded

PLAIN_SECONDS = 10.0
PROMISE = "the preparation stops soon, and the same command goes on with it; a second signal ends it at once"


@dataclass(frozen=True)
class PrepareOptions:
    """Turn text into token shards that every trainer of this project reads.

    Stopped at any moment, the same command goes on where it was.

    Attributes:
        data: stdlib, text:PATH, hf:NAME[:CONFIG[:SPLIT]], fineweb-edu or tinystories.
        tokenizer: bytes, bpe-scratch:VOCAB, gpt2 or PATH/tokenizer.json.
        out: Folder for the shards.
        tokenizer_files: Folder with GPT-2's encoder.json and vocab.bpe; the hub if not given.
        max_tokens: End each split with the document that brings it to this many tokens.
        workers: Encoding processes; one for each processor if not given.
        shard_tokens: Tokens of a full shard.
        max_document_bytes: Largest document; a longer one is an error.
        plain: Plain lines even on a terminal.
    """

    data: str
    tokenizer: str
    out: Path
    tokenizer_files: Path | None = None
    max_tokens: int | None = None
    workers: int | None = None
    shard_tokens: int = SHARD_TOKENS
    max_document_bytes: int = MAX_DOCUMENT_BYTES
    plain: bool = False


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 65 bad input, 73 cannot write, 75 resumable.

    Args:
        argv: Arguments; those of the process if None.
    """
    return guarded("gpt-data-prepare", lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> int:
    flags = parse_flags(
        argv, {"options": PrepareOptions}, prog="gpt-data-prepare", description=PrepareOptions.__doc__ or ""
    )
    options: PrepareOptions = flags.options
    stop = StopFlag()
    with watched(stop, plain=options.plain or not sys.stderr.isatty()) as show:
        dataset = prepare(
            options.data,
            options.tokenizer,
            options.out,
            tokenizer_files=options.tokenizer_files,
            max_tokens=options.max_tokens,
            workers=options.workers,
            shard_tokens=options.shard_tokens,
            max_document_bytes=options.max_document_bytes,
            on_progress=show,
            should_stop=stop,
        )
    emit(summary(dataset))
    return 0


def summary(dataset: Dataset) -> str:
    """What was prepared, and what to type next."""
    return (
        f"{dataset.folder}: {dataset.train.tokens:,} tokens to train on, {dataset.val.tokens:,} held out, "
        f"vocabulary {dataset.vocab_size:,}; train with --data shards:{dataset.folder}"
    )


@contextmanager
def watched(stop: StopFlag, *, plain: bool) -> Iterator[OnProgress]:
    """A function that shows progress, while signals end the preparation.

    Args:
        stop: Set by the first signal.
        plain: No progress bar.

    Raises:
        DataStoppedError: If a signal came while the tokenizer was built, which asks nobody.
    """
    with stop.installed(PROMISE), display(plain=plain) as show:

        def tell(progress: Progress) -> None:
            if progress.stage != "notice":
                stop.at_once = progress.stage == "tokenizer"
            show(progress)

        try:
            yield tell
        except KeyboardInterrupt:
            raise DataStoppedError(
                "stopped before the tokenizer was built; the same command begins again"
            ) from None
        finally:
            stop.at_once = False


@contextmanager
def display(*, plain: bool) -> Iterator[OnProgress]:
    """A function that shows progress: a bar, or a plain line every ten seconds.

    Args:
        plain: No bar.
    """
    if plain:
        yield PlainLines()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[detail]}"),
        TimeElapsedColumn(),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("starting", total=None, detail="")

        def show(progress: Progress) -> None:
            if progress.stage == "notice":
                bar.console.print(progress.message, highlight=False, markup=False)
                return
            done, total = _share(progress)
            bar.update(
                task, description=_label(progress), completed=done, total=total, detail=_detail(progress)
            )

        yield show


class PlainLines:
    """Progress as lines on the standard error, one every ten seconds and one for each notice."""

    def __init__(self) -> None:
        self.last = -PLAIN_SECONDS

    def __call__(self, progress: Progress) -> None:
        """Print a line if it is time for one."""
        if progress.stage == "notice":
            print(progress.message, file=sys.stderr, flush=True)
        elif progress.stage == "tokenizer" or time.monotonic() - self.last >= PLAIN_SECONDS:
            self.last = time.monotonic()
            print(f"{_label(progress)} {_detail(progress)}".rstrip(), file=sys.stderr, flush=True)


def _label(progress: Progress) -> str:
    return "building the tokenizer" if progress.stage == "tokenizer" else "encoding"


def _detail(progress: Progress) -> str:
    if progress.stage == "tokenizer":
        return ""
    return f"{progress.documents:,} documents, {progress.tokens:,} tokens"


def _share(progress: Progress) -> tuple[int, int | None]:
    if progress.max_tokens is not None:
        return min(progress.tokens, progress.max_tokens), progress.max_tokens
    return progress.text_bytes, progress.total_bytes


def main() -> None:
    """Run the command ``gpt-data-prepare``."""
    raise SystemExit(run())
