"""A preparation on the terminal: its progress, and signals that end it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from gpt_data.errors import StoppedError
from gpt_data.progress import OnProgress, Progress
from gpt_data.stopping import StopFlag
from gpt_data.terminal import warn

PLAIN_SECONDS = 10.0
PROMISE = "the preparation stops soon, and the same command goes on with it; a second signal ends it at once"


@contextmanager
def watched(stop: StopFlag, *, plain: bool) -> Iterator[OnProgress]:
    """A function that shows progress, while signals end the preparation.

    Raises:
        StoppedError: If a signal came while the tokenizer was built, which asks nobody.
    """
    with stop.installed(PROMISE), display(plain=plain) as show:

        def tell(progress: Progress) -> None:
            if progress.stage != "notice":
                stop.at_once = progress.stage == "tokenizer"
            show(progress)

        try:
            yield tell
        except KeyboardInterrupt:
            raise StoppedError(
                "stopped before the tokenizer was built; the same command begins again"
            ) from None
        finally:
            stop.at_once = False


@contextmanager
def display(*, plain: bool) -> Iterator[OnProgress]:
    """A function that shows progress: a bar, or a plain line every ten seconds."""
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


@contextmanager
def waiting(what: str, *, plain: bool = False) -> Iterator[Callable[[str], None]]:
    """Say on a terminal what takes the time, and take other words for it; within, nothing else is printed."""
    if plain or sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    with Console(stderr=True).status(what) as status:
        yield status.update


class PlainLines:
    """Progress as lines on the standard error, one every ten seconds and one for each notice."""

    def __init__(self) -> None:
        self.last = -PLAIN_SECONDS

    def __call__(self, progress: Progress) -> None:
        """Print a line if it is time for one."""
        if progress.stage == "notice":
            warn(progress.message)
        elif progress.stage == "tokenizer" or time.monotonic() - self.last >= PLAIN_SECONDS:
            self.last = time.monotonic()
            warn(f"{_label(progress)} {_detail(progress)}".rstrip())


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
