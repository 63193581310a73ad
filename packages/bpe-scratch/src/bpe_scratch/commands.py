"""The command ``bpe-scratch``: train, encode, decode."""

from __future__ import annotations

import io
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

from bpe_scratch.corpus import Part, read_parts
from bpe_scratch.errors import TokenizerError, WriteError
from bpe_scratch.files import replacing
from bpe_scratch.layers import say
from bpe_scratch.patterns import batches
from bpe_scratch.special import END_OF_TEXT
from bpe_scratch.tokenizer import Tokenizer

_BATCH = 1 << 24  # characters encoded at once


class _Parser(ArgumentParser):
    """What is mistyped is bad input."""

    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given | {"allow_abbrev": False})

    def print_help(self, file: Any = None) -> None:
        # argparse passes over what cannot be written
        print(self.format_help(), end="", file=file)

    def parse_known_args(self, *given: Any, **more: Any) -> Any:
        # of a command's own flags only its own parser knows
        found, unknown = super().parse_known_args(*given, **more)
        if unknown:
            meant = get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, n=1)
            self.error(f"unknown flag {unknown[0]}{''.join(f', perhaps {name}' for name in meant)}")
        return found, unknown

    def error(self, message: str) -> NoReturn:
        raise TokenizerError(f"{message}; {self.prog} --help lists what there is")


def _parser() -> ArgumentParser:
    path: dict[str, Any] = {"type": Path, "metavar": "PATH"}
    shown = " (default: %(default)s)"
    files, tokenizer = _Parser(add_help=False), _Parser(add_help=False)
    files.add_argument("files", nargs="+", **path, help="Texts, .jsonl, folders; also .gz, .xz, .bz2, .zst.")
    files.add_argument("--field", default="text", help=f"The document in JSON lines.{shown}")
    tokenizer.add_argument("--tokenizer", default="tokenizer.json", **path, help=f"Its file.{shown}")
    parser = _Parser("bpe-scratch", description="Byte-level BPE. Each command has a --help of its own.")
    commands = parser.add_subparsers(required=True, metavar="train|encode|decode")

    train = commands.add_parser("train", parents=[files], help="Learn a tokenizer from files.")
    train.set_defaults(run=_train)
    train.add_argument("--vocab-size", type=int, default=32_768, help=f"Number of ids.{shown}")
    train.add_argument("--out", default="tokenizer.json", **path, help=f"File to write.{shown}")
    train.add_argument("--pattern", default="gpt2", help=f"gpt2, cl100k, o200k, none, expression.{shown}")
    train.add_argument(
        "--special-token", nargs="*", default=[END_OF_TEXT], help=f"Texts with an own id.{shown}"
    )
    train.add_argument("--min-frequency", type=int, default=2, help=f"Least count of a pair.{shown}")

    encode = commands.add_parser("encode", parents=[files, tokenizer], help="Write ids, a document a line.")
    encode.set_defaults(run=_encode)
    encode.add_argument("--out", **path, help="Raw uint16 or uint32, the end of text behind each document.")

    decode = commands.add_parser("decode", parents=[tokenizer], help="Write the text of ids.")
    decode.set_defaults(run=_decode)
    decode.add_argument("ids", nargs="*", type=int, help="Read from the standard input if there are none.")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits with 65 for bad input, 73 if something cannot be written."""
    try:
        for stream in (sys.stdout, sys.stderr):
            # what a terminal cannot show is replaced
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="replace")
        try:
            arguments = _parser().parse_args(argv)
            arguments.run(arguments)
        finally:
            if sys.stdout is not None:  # as it is where a shell closed it
                sys.stdout.flush()
    except (TokenizerError, WriteError) as error:
        _fail(str(error), 73 if isinstance(error, WriteError) else 65)
    except OSError as error:
        # files that are read have names; what has none is standard output
        if error.filename is not None:
            _fail(f"cannot read {error.filename}: {error.strerror}", 65)
        # what could not be written is not tried again when the process ends
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # a reader that leaves has what it wanted
        if not isinstance(error, BrokenPipeError):
            _fail(f"cannot write the output: {error.strerror}", 73)


def _fail(message: str, status: int) -> NoReturn:
    say(f"bpe-scratch: {message}")
    sys.exit(status)


def _show(message: str) -> None:
    """A line on a terminal that the next one takes the place of."""
    if sys.stderr.isatty():
        say(f"\r\x1b[K{message}", end="")


def _train(given: Namespace) -> None:
    from bpe_scratch.training import train

    tokenizer = train(
        _counted(read_parts(given.files, given.field, given.pattern, say)),
        given.vocab_size,
        pattern=given.pattern,
        special_tokens=given.special_token,
        min_frequency=given.min_frequency,
    )
    tokenizer.save(given.out)
    fewer = f" of {given.vocab_size} asked for: no other pair occurs {given.min_frequency} times"
    size = f"{tokenizer.vocab_size} ids{fewer if tokenizer.vocab_size < given.vocab_size else ''}"
    _show("")
    say(f"{given.out}: {size}, sha256 {tokenizer.sha256[:16]}")


def _counted(parts: Iterator[Part]) -> Iterator[str]:
    for number, part in enumerate(parts):
        if number % 1000 == 0:
            _show(f"reading: {number} documents")
        yield part.text
    _show("learning merges")


def _encode(given: Namespace) -> None:
    tokenizer = Tokenizer.load(given.tokenizer)
    parts = read_parts(given.files, given.field, tokenizer.pattern, say)
    if given.out is None:
        for part in parts:
            print(*tokenizer.encode(part.text), end="\n" if part.last else " ")
        return
    with replacing(given.out) as file:
        held = batches(parts, _BATCH, lambda part: len(part.text))
        number = sum(_write_ids(tokenizer, batch, file) for batch in held)
    say(f"{given.out}: {number} ids of {np.dtype(tokenizer.dtype)}")


def _decode(given: Namespace) -> None:
    try:
        ids = given.ids or list(map(int, sys.stdin.read().split()))
    except ValueError as error:
        raise TokenizerError(f"standard input holds what is no id: {error}") from None
    print(Tokenizer.load(given.tokenizer).decode(ids), end="")


def _write_ids(tokenizer: Tokenizer, batch: list[Part], file: IO[bytes]) -> int:
    ids, offsets = tokenizer.encode_to_numpy([part.text for part in batch])
    if tokenizer.end_of_text is not None:
        last = np.array([part.last for part in batch], dtype=bool)
        ids = np.insert(ids, offsets[1:][last], tokenizer.end_of_text)
    file.write(ids.astype(ids.dtype.newbyteorder("<")).tobytes())
    return ids.size
