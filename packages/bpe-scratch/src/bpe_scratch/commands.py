"""The command ``bpe-scratch``: train, encode, decode, inspect."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from bpe_scratch.corpus import Part, read_parts
from bpe_scratch.errors import TokenizerError, WriteError
from bpe_scratch.files import replacing
from bpe_scratch.layers import Layer
from bpe_scratch.special import END_OF_TEXT
from bpe_scratch.tokenizer import Tokenizer

Files = Annotated[tuple[Path, ...], tyro.conf.Positional]
_NARROWEST = 40
_BATCH = 1 << 24  # characters encoded at once


@dataclass(frozen=True)
class Train:
    """Learn a tokenizer from files and write ``tokenizer.json``."""

    files: Files
    """Text files, .jsonl, or folders of them, perhaps .gz, .xz, .bz2 or .zst."""
    vocab_size: int = 32_768
    """Number of ids, the bytes and special tokens included."""
    out: Path = Path("tokenizer.json")
    """File to write."""
    pattern: str = "gpt2"
    """gpt2, cl100k, o200k, whitespace, none, or an expression."""
    special_token: tuple[str, ...] = (END_OF_TEXT,)
    """Texts with an id of their own."""
    min_frequency: int = 2
    """Least count of a pair worth merging."""
    field: str = "text"
    """Field of JSON lines that holds the document."""
    layer: Layer = "auto"
    """Implementation; the merges are the same."""


@dataclass(frozen=True)
class Encode:
    """Write the ids of files: one document a line, or raw numbers with --out."""

    files: Files
    """Files as for train."""
    tokenizer: Path = Path("tokenizer.json")
    """tokenizer.json to use."""
    out: Path | None = None
    """File for little-endian uint16 or uint32 ids, the end of text after each document."""
    field: str = "text"
    """Field of JSON lines that holds the document."""
    threads: int = 1
    """Threads that share the documents."""


@dataclass(frozen=True)
class Decode:
    """Write the text of ids, given as arguments or on standard input."""

    ids: Annotated[tuple[int, ...], tyro.conf.Positional] = field(default_factory=tuple)
    """Ids; read from standard input if none is given. Negative ones need no --, behind which all are ids."""
    tokenizer: Path = Path("tokenizer.json")
    """tokenizer.json to use."""


@dataclass(frozen=True)
class Inspect:
    """Show what a tokenizer knows, and how it cuts a text."""

    tokenizer: Path = Path("tokenizer.json")
    """tokenizer.json to show."""
    text: str | None = None
    """A text to cut; shown in colours, one a token."""
    files: tuple[Path, ...] = ()
    """Files to count bytes per token on."""
    rows: int = 20
    """Merges and tokens to list."""


def main(argv: Sequence[str] | None = None, *, on_ready: Any = None) -> None:
    """Run the command; exits with 65 for bad input, 73 if something cannot be written, 130 for Ctrl-C.

    ``on_ready``, if given, handles Ctrl-C from now on.
    """
    try:
        if on_ready is not None:
            signal.signal(signal.SIGINT, on_ready)
        _prepare_streams()
        try:
            # nobody types None: a flag that may be missing shows what it takes
            config = (tyro.conf.DisallowNone,)
            _run(tyro.cli(Train | Encode | Decode | Inspect, prog="bpe-scratch", args=argv, config=config))  # type: ignore[arg-type]
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(130)
    except (TokenizerError, WriteError) as error:
        _fail(str(error), 73 if isinstance(error, WriteError) else 65)
    except OSError as error:
        # files that are read have names; what has none is standard output
        if error.filename is not None:
            _fail(f"cannot read {error.filename}: {error.strerror}", 65)
        _close_output()
        # a reader that leaves has what it wanted
        if not isinstance(error, BrokenPipeError):
            _fail(f"cannot write the output: {error.strerror}", 73)


def _prepare_streams() -> None:
    """What a terminal cannot show is replaced, and help has room to be laid out."""
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _close_output() -> None:
    """What could not be written is not tried again when the process ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int) -> None:
    _say(f"bpe-scratch: {message}", style="red")
    sys.exit(status)


def _say(message: str, style: str | None = None) -> None:
    Console(stderr=True).print(message, style=style, markup=False, highlight=False, soft_wrap=True)


def _run(arguments: Train | Encode | Decode | Inspect) -> None:
    if isinstance(arguments, Train):
        _train(arguments)
    elif isinstance(arguments, Encode):
        _encode(arguments)
    elif isinstance(arguments, Decode):
        try:
            ids = arguments.ids or tuple(map(int, sys.stdin.read().split()))
        except ValueError as error:
            raise TokenizerError(f"standard input holds what is no id: {error}") from None
        sys.stdout.write(Tokenizer.load(arguments.tokenizer).decode(ids))
    else:
        from bpe_scratch.inspection import inspect

        inspect(Tokenizer.load(arguments.tokenizer), arguments.text, arguments.files, arguments.rows)


def _train(arguments: Train) -> None:
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from bpe_scratch.training import train

    console = Console(stderr=True)
    columns = SpinnerColumn("line"), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading")
        parts = read_parts(arguments.files, arguments.field, arguments.pattern, _say)
        tokenizer = train(
            (part.text for part in parts),
            arguments.vocab_size,
            pattern=arguments.pattern,
            special_tokens=arguments.special_token,
            min_frequency=arguments.min_frequency,
            layer=arguments.layer,
            on_documents=lambda n: progress.update(task, description=f"counted {n} documents"),
            on_progress=lambda done, wanted: progress.update(
                task, description=f"learned {done} of {wanted} merges"
            ),
        )
    tokenizer.save(arguments.out)
    short = tokenizer.vocab_size < arguments.vocab_size
    fewer = f" of {arguments.vocab_size} asked for: no other pair occurs {arguments.min_frequency} times"
    _say(
        f"{arguments.out}: {tokenizer.vocab_size} ids{fewer if short else ''}, sha256 {tokenizer.sha256[:16]}"
    )


def _encode(arguments: Encode) -> None:
    tokenizer = Tokenizer.load(arguments.tokenizer)
    parts = read_parts(arguments.files, arguments.field, tokenizer.pattern, _say)
    if arguments.out is None:
        for part in parts:
            print(*tokenizer.encode(part.text), end="\n" if part.last else " ")
        return
    with replacing(arguments.out) as file:
        number = sum(_write_ids(tokenizer, batch, arguments.threads, file) for batch in _batches(parts))
    _say(f"{arguments.out}: {number} ids of {np.dtype(tokenizer.dtype)}")


def _batches(parts: Iterator[Part]) -> Iterator[list[Part]]:
    batch: list[Part] = []
    size = 0
    for part in parts:
        batch.append(part)
        size += len(part.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    yield batch


def _write_ids(tokenizer: Tokenizer, batch: list[Part], threads: int, file: IO[bytes]) -> int:
    ids, offsets = tokenizer.encode_to_numpy([part.text for part in batch], threads=threads)
    if tokenizer.end_of_text is not None:
        last = np.array([part.last for part in batch], dtype=bool)
        ids = np.insert(ids, offsets[1:][last], tokenizer.end_of_text)
    file.write(ids.astype(ids.dtype.newbyteorder("<")).tobytes())
    return ids.size
