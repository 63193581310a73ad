"""Sentence pairs, and reading them from two files of which line i of one translates line i of the other.

A line ends at a line feed and nowhere else: other characters that may break lines, such as U+2028, belong
to the text. A byte-order mark at the start of a file and a carriage return before a line feed are taken
off. A pair with an empty line on either side is left out, and said so; whatever else is wrong ends the
reading with the file's name and the line.
"""

from __future__ import annotations

import io
import sys
from array import array
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from gpt_data.errors import InputError
from gpt_data.store.unpacking import open_unpacked

from aiayn_jax.data.packed_text import PackedText

LONGEST_LINE = 1 << 20
"""Bytes of a line; a file with longer ones is not one of sentences."""
SHOWN_LINES = 5
BOM = "\ufeff"


@dataclass(frozen=True)
class TextPairs:
    """Sentences and their translations.

    Attributes:
        source: Sentences to translate.
        target: Their translations.
        numbers: Line or record of each pair, from 1, for messages.
        notes: What was left out or taken off while reading, one line each.
    """

    source: Sequence[str]
    target: Sequence[str]
    numbers: Sequence[int]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.source)

    def first(self, count: int) -> TextPairs:
        """The first ``count`` pairs, or all if there are fewer."""
        return TextPairs(self.source[:count], self.target[:count], self.numbers[:count], self.notes)


@dataclass
class PairCollector:
    """Takes pairs one by one, leaves out those with an empty side, and keeps count of them.

    Attributes:
        unit: What a pair's number counts: ``line`` or ``record``.
    """

    unit: str = "line"
    source: PackedText = field(default_factory=PackedText)
    target: PackedText = field(default_factory=PackedText)
    numbers: array[int] = field(default_factory=lambda: array("q"))
    _empty: dict[str, list[int]] = field(default_factory=dict)

    def add(self, number: int, source: str, target: str) -> None:
        """Take a pair."""
        blank = [side for side, text in (("source", source), ("target", target)) if not text.strip()]
        if blank:
            self._empty.setdefault(" and ".join(blank), []).append(number)
            return
        self.source.append(source)
        self.target.append(target)
        self.numbers.append(number)

    def finish(self, where: str, notes: Sequence[str] = ()) -> TextPairs:
        """The pairs, with a note for each way of being empty.

        Args:
            notes: What else was seen.

        Raises:
            InputError: If no pair is left.
        """
        left_out = [
            f"{where}: {_counted(len(found), 'pair')} left out, the {side} is empty "
            f"({shown_numbers(found, self.unit)})"
            for side, found in self._empty.items()
        ]
        if not self.source:
            raise InputError("; ".join([f"{where} holds no pair of sentences", *left_out]))
        return TextPairs(self.source, self.target, self.numbers, (*notes, *left_out))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def shown_numbers(numbers: Sequence[int], unit: str = "line") -> str:
    """The first of some numbers, for a message.

    >>> shown_numbers([3, 5, 8, 9, 12, 40])
    'lines 3, 5, 8, 9, 12, ...'
    """
    listed = ", ".join(str(number) for number in numbers[:SHOWN_LINES])
    return f"{unit}{'' if len(numbers) == 1 else 's'} {listed}{', ...' if len(numbers) > SHOWN_LINES else ''}"


class LineFile:
    """The lines of one UTF-8 file, plain or compressed by .bz2, .gz, .xz or .zst.

    Attributes:
        path: The file; the standard input if None.
        piped: Whether it may be a pipe, which is read as it is, and waited for.
        carriage_returns: Lines so far that ended in one.
        marked: Whether the file began with a byte-order mark.
    """

    def __init__(self, path: Path | None, *, piped: bool = False) -> None:
        self.path, self.piped = path, piped
        self.carriage_returns = 0
        self.marked = False

    def __iter__(self) -> Iterator[str]:
        """The lines without what ends them.

        Raises:
            InputError: If the file cannot be read, or a line is too long or not UTF-8.
        """
        with self._open() as file:
            number = 0
            while raw := file.readline(LONGEST_LINE + 1):
                number += 1
                yield self._clean(raw, number)

    def _open(self) -> AbstractContextManager[BinaryIO | io.BufferedIOBase]:
        if self.path is None:
            return nullcontext(sys.stdin.buffer)
        return self.path.open("rb") if self.piped and self.path.is_fifo() else open_unpacked(self.path)

    def _clean(self, raw: bytes, number: int) -> str:
        where = f"{self.path or 'the standard input'} line {number}"
        if len(raw) > LONGEST_LINE:
            raise InputError(f"{where} is longer than {LONGEST_LINE:,} bytes")
        try:
            line = raw.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8 at byte {error.start + 1} of the line") from None
        line = line.removesuffix("\n")
        if number == 1 and line.startswith(BOM):
            self.marked, line = True, line[1:]
        self.carriage_returns += line.endswith("\r")
        return line.removesuffix("\r")

    def notes(self) -> list[str]:
        """What was taken off, once the lines have been read."""
        found = [f"{self.path}: a byte-order mark was taken off"] if self.marked else []
        if self.carriage_returns:
            lines = _counted(self.carriage_returns, "line")
            found.append(f"{self.path}: a carriage return was taken off the end of {lines}")
        return found


def read_pairs(source: Path, target: Path) -> TextPairs:
    """The pairs of two files.

    Raises:
        InputError: If a file cannot be read, the files differ in their number of lines, or no pair is left.
    """
    files, lines, pairs = (LineFile(source), LineFile(target)), [0, 0], PairCollector()
    for number, both in enumerate(zip_longest(*files), start=1):
        for side, line in enumerate(both):
            if line is not None:
                lines[side] = number
        if None not in both:
            pairs.add(number, *both)
    if lines[0] != lines[1]:
        raise InputError(
            f"{source} has {lines[0]:,} lines and {target} has {lines[1]:,}: "
            "line i of one must translate line i of the other"
        )
    return pairs.finish(f"{source} and {target}", [note for file in files for note in file.notes()])


def read_lines(path: Path) -> list[str]:
    """The lines of a file, empty ones among them.

    Raises:
        InputError: If it cannot be read, or a line is too long or not UTF-8.
    """
    return list(LineFile(path))
