"""Timing against tiktoken, Hugging Face tokenizers and gigatoken: one thread, the same text, the same ids.

    python packages/bpe-scratch/bench/bench_tokenizers.py FILES --tokenizer tokenizer.json

Those that are not installed are left out. No time is shown before all ids are compared.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from bpe_scratch.corpus import read_parts
from bpe_scratch.tokenizer import Tokenizer
from competitors import Run, encoders, tiktoken_of, train_hugging_face
from rich.console import Console
from rich.table import Table

_MEANING = (
    "Medians, (spread: largest less smallest, of the median). Cold: the first call of a fresh tokenizer, "
    "kernels compiled. Warm: later calls of the same, each result released before the next call."
)


class Effort(NamedTuple):
    """How often a run is repeated: ``repeats`` times, but not once ``patience`` seconds are spent on it."""

    repeats: int
    patience: float

    def __call__(self, run: Callable[[], float]) -> list[float]:
        """Repeat a run, which returns its seconds."""
        times: list[float] = []
        while len(times) < self.repeats and sum(times) < self.patience:
            times.append(run())
        return times


def seconds(run: Run, look: Callable[[Any], None] | None = None) -> float:
    """Seconds of one run, whose result is then released.

    Args:
        run: What is timed.
        look: Is shown the result, when the time is taken.
    """
    start = time.perf_counter()
    result = run()
    stop = time.perf_counter()
    if look:
        look(result)
    return stop - start


def cold_and_warm(
    make: Callable[[], Run], effort: Effort, look: Callable[[Any], None] | None = None
) -> tuple[list[float], list[float]]:
    """Seconds of first runs of fresh objects, and of further runs of one.

    Args:
        make: Builds a fresh object; not timed.
        effort: Runs of each kind.
        look: Is shown one result, in the time between.
    """
    cold = effort(lambda: seconds(make()))
    run = make()
    seconds(run, look)
    return cold, effort(lambda: seconds(run))


def take_documents(files: Sequence[Path], megabytes: float) -> list[str]:
    """Documents of about this many megabytes of UTF-8.

    Args:
        files: Files to read.
        megabytes: Size at which reading stops.
    """
    documents, size = [], 0
    for part in read_parts(files, pattern="gpt2"):
        documents.append(part.text)
        size += len(part.text.encode())
        if size >= megabytes * 1e6:
            break
    return documents


def flat(ids: Any) -> np.ndarray:
    """Ids of any shape in one array.

    Args:
        ids: An array or a list of lists.
    """
    if isinstance(ids, np.ndarray):
        return ids.astype(np.uint32)
    return np.concatenate([np.array(part, dtype=np.uint32) for part in ids])


def bench(
    tokenizer: Tokenizer, files: Sequence[Path], megabytes: float, repeats: int, patience: float, train: int
) -> None:
    """Print the tables.

    Args:
        tokenizer: The tokenizer to time.
        files: Files to take text from.
        megabytes: Text to take.
        repeats: Runs of each.
        patience: Seconds after which a run is not repeated.
        train: Merges to learn for the training table; 0 for none.
    """
    documents, effort = take_documents(files, megabytes), Effort(repeats, patience)
    console = Console(width=120)
    parts = ("numpy", "numba", "tiktoken", "tokenizers", "gigatoken")
    versions = ", ".join(f"{name} {version(name)}" for name in parts if find_spec(name))
    console.print(
        f"{_megabytes(documents):.1f} MB, {len(documents)} documents, one thread, {platform.machine()}, "
        f"Python {platform.python_version()}, {versions}, {time.strftime('%Y-%m-%d')}\n{_MEANING}",
        highlight=False,
    )
    console.print(_encoding(tokenizer, documents, effort))
    console.print(_one_by_one_and_back(tokenizer, documents, effort))
    if train:
        console.print(_training(documents, train, effort))


def _megabytes(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def _rate(size: float, times: list[float]) -> str:
    """MB/s and spread."""
    return f"{size / statistics.median(times):.1f} ({_spread(times)})"


def _spread(times: list[float]) -> str:
    if len(times) == 1:
        return "one run"
    return f"{100 * (max(times) - min(times)) / statistics.median(times):.0f} %"


def _ratio(theirs: list[float] | None, ours: list[float]) -> str:
    return f"{statistics.median(theirs) / statistics.median(ours):.2f}" if theirs else ""


class _SameIds:
    """Whether all give the ids that the first one gave."""

    def __init__(self) -> None:
        self._first: np.ndarray | None = None

    def of(self, name: str) -> Callable[[Any], None]:
        def look(ids: Any) -> None:
            found = flat(ids)
            if self._first is None:
                self._first = found
            if not np.array_equal(found, self._first):
                raise AssertionError(f"{name} gives other ids: no time is worth reporting")

        return look


def _encoding(tokenizer: Tokenizer, documents: list[str], effort: Effort) -> Table:
    size, same, makers = _megabytes(documents), _SameIds(), encoders(tokenizer, documents)
    times = {name: cold_and_warm(make, effort, same.of(name)) for name, make in makers.items()}
    table = Table("encode, MB/s", "cold", "warm")
    others = [name for name in ("tiktoken", "tokenizers", "gigatoken, arrays") if name in times]
    for other in others:
        table.add_column(f"x {other.split(',')[0]}, cold, warm", justify="right")
    for name, pair in times.items():
        ratios = (", ".join(_ratio(times[other][k], pair[k]) for k in range(2)) for other in others)
        table.add_row(name, *(_rate(size, part) for part in pair), *ratios)
    return table


def _one_by_one_and_back(tokenizer: Tokenizer, documents: list[str], effort: Effort) -> Table:
    """Texts of 1 kB one at a time, and decoding; tiktoken does the same from lists."""
    table = Table("warm, MB/s", "bpe-scratch", "tiktoken, lists", "x tiktoken")
    known: dict[str, list[float]] = {}
    for name, size, ours, theirs in _single_runs(tokenizer, documents):
        times = _warm(ours, effort)
        # arrays and lists are held against the same
        key = name.replace("array", "list")
        if theirs and key not in known:
            known[key] = _warm(theirs, effort)
        other = known.get(key)
        table.add_row(name, _rate(size, times), _rate(size, other) if other else "", _ratio(other, times))
    return table


def _warm(run: Run, effort: Effort) -> list[float]:
    return cold_and_warm(lambda: run, effort)[1]


def _single_runs(tokenizer: Tokenizer, documents: list[str]) -> Iterator[tuple[str, float, Run, Run | None]]:
    """``(name, megabytes, this package, tiktoken)``."""
    size, theirs = _megabytes(documents), tiktoken_of(tokenizer) if find_spec("tiktoken") else None
    texts = [document[i : i + 1000] for document in documents[:500] for i in range(0, len(document), 1000)]
    pairs: list[tuple[str, Any, Any]] = [
        ("to bytes", tokenizer.decode_bytes, theirs and theirs.decode_bytes),
        ("to text", tokenizer.decode, theirs and theirs.decode),
    ]

    def each(work: Any, given: Sequence[Any]) -> Run:
        return lambda: [work(one) for one in given]

    encode = theirs and each(theirs.encode_ordinary, texts)
    yield "encode 1 kB at a time", _megabytes(texts), each(tokenizer.encode, texts), encode
    ids, offsets = tokenizer.encode_to_numpy(documents)
    arrays = [ids[start:stop] for start, stop in pairwise(offsets.tolist())]
    lists = [part.tolist() for part in arrays]
    whole = ids.tolist()
    for to, ours, other in pairs:
        back = other and each(other, [whole])
        yield f"an array {to}", size, each(ours, [ids]), back
        yield f"a list {to}", size, each(ours, [whole]), back
        back = other and each(other, lists)
        yield f"an array per document {to}", size, each(ours, arrays), back
        yield f"a list per document {to}", size, each(ours, lists), back


def _training(documents: list[str], merges: int, effort: Effort) -> Table:
    from bpe_scratch.training import train

    runs = {"bpe-scratch": lambda: train(documents, 256 + merges, special_tokens=())}
    if find_spec("tokenizers"):
        runs["tokenizers"] = lambda: train_hugging_face(documents, merges)
    # so that no kernel is compiled in a timed run
    train(documents[:1], 260)
    times = {name: effort(partial(seconds, run)) for name, run in runs.items()}
    table = Table(f"train {merges} merges", "seconds (spread)", "x tokenizers")
    for name, taken in times.items():
        shown = f"{statistics.median(taken):.2f} ({_spread(taken)})"
        table.add_row(name, shown, _ratio(times.get("tokenizers"), taken))
    return table


def main() -> None:
    """Entry point; the arguments are those of :func:`bench`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tokenizer", type=Path, default=Path("tokenizer.json"))
    parser.add_argument("--megabytes", type=float, default=20.0, help="text to take from the files")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each; the median is shown")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds; slow runs are not repeated")
    parser.add_argument("--train", type=int, default=0, help="if not 0, time learning this many merges too")
    given = parser.parse_args()
    tokenizer = Tokenizer.load(given.tokenizer)
    bench(tokenizer, given.files, given.megabytes, given.repeats, given.patience, given.train)


if __name__ == "__main__":
    main()
