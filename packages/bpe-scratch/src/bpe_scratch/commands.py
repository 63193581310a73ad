"""The command ``bpe-scratch``: train, encode, decode, inspect, bench."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console

from bpe_scratch.corpus import read_documents
from bpe_scratch.errors import TokenizerError
from bpe_scratch.layers import Layer
from bpe_scratch.special import END_OF_TEXT
from bpe_scratch.tokenizer import Tokenizer

Files = Annotated[tuple[Path, ...], tyro.conf.Positional]


@dataclass(frozen=True)
class Train:
    """Learn a tokenizer from files and write ``tokenizer.json``."""

    files: Files
    """Text files or .jsonl, perhaps .gz, .xz or .bz2."""
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
    workers: int = 1
    """Processes that count words."""
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


@dataclass(frozen=True)
class Bench:
    """Time this package against tiktoken and tokenizers, on one thread and the same text."""

    files: Files
    """Files as for train."""
    tokenizer: Path = Path("tokenizer.json")
    """tokenizer.json to use in all of them."""
    megabytes: float = 20.0
    """Text to take from the files."""
    repeats: int = 5
    """Runs of each; the median and the spread are shown."""
    patience: float = 60.0
    """Seconds after which a slow run is not repeated."""
    train: int = 0
    """If not 0, time learning this many merges as well."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point.

    Args:
        argv: Arguments; the process's own if not given.
    """
    arguments = tyro.cli(Train | Encode | Decode | Inspect | Bench, prog="bpe-scratch", args=argv)  # type: ignore[arg-type]
    try:
        _run(arguments)
    except (TokenizerError, OSError) as error:
        Console(stderr=True).print(
            f"bpe-scratch: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(65 if isinstance(error, TokenizerError) else 74)
    except KeyboardInterrupt:
        sys.exit(130)


def _run(arguments: Train | Encode | Decode | Inspect | Bench) -> None:
    if isinstance(arguments, Train):
        _train(arguments)
    elif isinstance(arguments, Encode):
        _encode(arguments)
    elif isinstance(arguments, Decode):
        ids = arguments.ids or tuple(_integer(word) for word in sys.stdin.read().split())
        sys.stdout.write(Tokenizer.load(arguments.tokenizer).decode(ids))
    elif isinstance(arguments, Inspect):
        from bpe_scratch.inspection import inspect

        inspect(Tokenizer.load(arguments.tokenizer), arguments.text, arguments.files, arguments.rows)
    else:
        from bpe_scratch.bench import bench

        bench(
            Tokenizer.load(arguments.tokenizer),
            arguments.files,
            arguments.megabytes,
            arguments.repeats,
            arguments.patience,
            arguments.train,
        )


def _integer(word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise TokenizerError(f"{word[:40]!r} is not an id") from None


def _train(arguments: Train) -> None:
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from bpe_scratch.training import train

    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), console=console, transient=True
    ) as progress:
        task = progress.add_task("reading")
        tokenizer = train(
            read_documents(arguments.files, arguments.field),
            arguments.vocab_size,
            pattern=arguments.pattern,
            special_tokens=arguments.special_token,
            min_frequency=arguments.min_frequency,
            workers=arguments.workers,
            layer=arguments.layer,
            on_documents=lambda n: progress.update(task, description=f"counted {n} documents"),
            on_progress=lambda done, wanted: progress.update(
                task, description=f"learned {done} of {wanted} merges"
            ),
        )
    tokenizer.save(arguments.out)
    console.print(
        f"{arguments.out}: {tokenizer.vocab_size} ids, sha256 {tokenizer.sha256[:16]}", soft_wrap=True
    )


def _encode(arguments: Encode) -> None:
    tokenizer = Tokenizer.load(arguments.tokenizer)
    documents = read_documents(arguments.files, arguments.field)
    if arguments.out is None:
        for document in documents:
            print(*tokenizer.encode(document))
        return
    ids, offsets = tokenizer.encode_to_numpy(list(documents), threads=arguments.threads)
    if tokenizer.end_of_text is not None:
        ids = np.insert(ids, offsets[1:], tokenizer.end_of_text)
    ids.astype(ids.dtype.newbyteorder("<")).tofile(arguments.out)
    Console(stderr=True).print(f"{arguments.out}: {ids.size} ids of {ids.dtype}", soft_wrap=True)
