"""Timing against tiktoken and Hugging Face tokenizers: one thread, the same text, the same ids."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bpe_scratch.corpus import read_documents
from bpe_scratch.patterns import resolve_pattern
from bpe_scratch.tokenizer import Tokenizer

Run = Callable[[], Any]


def take_documents(files: Sequence[Path], megabytes: float) -> list[str]:
    """Documents of about this many megabytes of UTF-8.

    Args:
        files: Files to read.
        megabytes: Size at which reading stops.
    """
    documents, size = [], 0
    for document in read_documents(files):
        documents.append(document)
        size += len(document.encode())
        if size >= megabytes * 1e6:
            break
    return documents


def seconds(make: Callable[[], Run], repeats: int) -> tuple[list[float], list[float], Any]:
    """``(cold, warm, result)`` seconds; each cold run is the first of a fresh object.

    Args:
        make: Builds a fresh runner; not timed.
        repeats: Runs of each kind.
    """
    cold: list[float] = []
    warm: list[float] = []
    result = None
    for _ in range(repeats):
        run = make()
        for times in (cold, warm):
            start = time.perf_counter()
            result = run()
            times.append(time.perf_counter() - start)
    return cold, warm, result


def runners(tokenizer: Tokenizer, documents: list[str]) -> dict[str, Callable[[], Run]]:
    """What is timed, by name; each gives the ids of all documents.

    Args:
        tokenizer: The tokenizer that all of them implement.
        documents: Texts to encode.
    """

    def ours(layer: str, lists: bool) -> Callable[[], Run]:
        def make() -> Run:
            fresh = Tokenizer(tokenizer.vocabulary, pattern=tokenizer.pattern, layer=layer)  # type: ignore[arg-type]
            fresh.encode("")
            return lambda: fresh.encode_batch(documents) if lists else fresh.encode_to_numpy(documents)[0]

        return make

    found: dict[str, Callable[[], Run]] = {}
    if find_spec("numba"):
        found |= {"compiled, array": ours("compiled", False), "compiled, lists": ours("compiled", True)}
    found["arrays, array"] = ours("arrays", False)
    if find_spec("tiktoken"):
        theirs = _tiktoken(tokenizer)
        found["tiktoken"] = lambda: lambda: theirs.encode_ordinary_batch(documents, num_threads=1)
    if find_spec("gigatoken"):
        found["gigatoken"] = _gigatoken(tokenizer, documents)
    if find_spec("tokenizers"):
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        found["tokenizers"] = _hugging_face(tokenizer, documents)
    return found


def _tiktoken(tokenizer: Tokenizer) -> Any:
    import tiktoken

    expression = resolve_pattern(tokenizer.pattern)[1] or r"[\s\S]+"
    ranks = {token: index for index, token in enumerate(tokenizer.vocabulary.tokens) if token is not None}
    return tiktoken.Encoding("bench", pat_str=expression, mergeable_ranks=ranks, special_tokens={})


def _hugging_face(tokenizer: Tokenizer, documents: list[str]) -> Callable[[], Run]:
    from tokenizers import Tokenizer as HuggingFace

    text = tokenizer.to_json()

    def make() -> Run:
        fresh = HuggingFace.from_str(text)
        return lambda: [encoding.ids for encoding in fresh.encode_batch_fast(documents)]

    return make


def _gigatoken(tokenizer: Tokenizer, documents: list[str]) -> Callable[[], Run]:
    import awkward
    import gigatoken

    text = tokenizer.to_json()

    def make() -> Run:
        fresh = gigatoken.Tokenizer.from_json(text)
        return lambda: np.asarray(awkward.flatten(fresh.encode_batch(documents, parallel=False)))

    return make


def flat(ids: Any) -> np.ndarray:
    """Ids of any shape in one array.

    Args:
        ids: An array or a list of lists.
    """
    if isinstance(ids, np.ndarray):
        return ids.astype(np.int64)
    return np.concatenate([np.array(part, dtype=np.int64) for part in ids])


def bench(tokenizer: Tokenizer, files: Sequence[Path], megabytes: float, repeats: int, train: int) -> None:
    """Print one table.

    Args:
        tokenizer: The tokenizer to time.
        files: Files to take text from.
        megabytes: Text to take.
        repeats: Runs of each.
        train: Merges to learn for the training table; 0 for none.
    """
    documents = take_documents(files, megabytes)
    size = sum(len(document.encode()) for document in documents) / 1e6
    console = Console(width=120)
    parts = {name: version(name) for name in ("numpy", "numba", "tiktoken", "tokenizers") if find_spec(name)}
    console.print(
        f"{size:.1f} MB, {len(documents)} documents, one thread, {platform.processor() or platform.machine()}"
    )
    console.print(f"Python {platform.python_version()}, {parts}, {time.strftime('%Y-%m-%d')}")
    table = Table("encode", "cold MB/s", "warm MB/s", "x tiktoken cold", "x tiktoken warm", "spread")
    measured = {name: seconds(make, repeats) for name, make in runners(tokenizer, documents).items()}
    base = measured.get("tiktoken", next(iter(measured.values())))
    expected = flat(next(iter(measured.values()))[2])
    for name, (cold, warm, ids) in measured.items():
        if not np.array_equal(flat(ids), expected):
            raise AssertionError(f"{name} gives other ids: no time is worth reporting")
        c, w = statistics.median(cold), statistics.median(warm)
        ratios = (statistics.median(base[0]) / c, statistics.median(base[1]) / w)
        spread = f"{100 * (max(warm) - min(warm)) / w:.0f} %"
        table.add_row(name, f"{size / c:.1f}", f"{size / w:.1f}", *(f"{r:.2f}" for r in ratios), spread)
    console.print(table)
    _bench_small(tokenizer, documents, expected, repeats, console)
    if train:
        _bench_training(documents, train, repeats, console)


def _bench_small(
    tokenizer: Tokenizer, documents: list[str], ids: np.ndarray, repeats: int, console: Console
) -> None:
    """Texts of 1 kB one at a time, and decoding; for tiktoken the same."""
    texts = [document[i : i + 1000] for document in documents[:500] for i in range(0, len(document), 1000)]
    size, whole = (sum(len(text.encode()) for text in part) / 1e6 for part in (texts, documents))
    array, numbers = ids.astype(tokenizer.dtype), ids.tolist()
    lists = tokenizer.encode_batch(documents)
    runs: dict[str, tuple[float, Run]] = {
        "one kB at a time": (size, lambda: [tokenizer.encode(text) for text in texts]),
        "decode an array": (whole, lambda: tokenizer.decode(array)),
        "decode an array to bytes": (whole, lambda: tokenizer.decode_bytes(array)),
        "decode a list": (whole, lambda: tokenizer.decode(numbers)),
        "decode a list to bytes": (whole, lambda: tokenizer.decode_bytes(numbers)),
        "decode a list per document": (whole, lambda: tokenizer.decode_batch(lists)),
    }
    if find_spec("tiktoken"):
        theirs = _tiktoken(tokenizer)
        runs |= {
            "tiktoken: one kB at a time": (size, lambda: [theirs.encode_ordinary(text) for text in texts]),
            "tiktoken: decode a list": (whole, lambda: theirs.decode(numbers)),
            "tiktoken: decode a list to bytes": (whole, lambda: theirs.decode_bytes(numbers)),
            "tiktoken: decode a list per document": (whole, lambda: [theirs.decode(part) for part in lists]),
        }
    table = Table("one by one, and back", "MB/s", "spread")
    for name, (megabytes, run) in runs.items():
        # the first is cold: compiling and new memory
        times = seconds(lambda run=run: run, repeats)[1]  # type: ignore[misc]
        middle = statistics.median(times)
        spread = f"{100 * (max(times) - min(times)) / middle:.0f} %"
        table.add_row(name, f"{megabytes / middle:.1f}", spread)
    console.print(table)


def _bench_training(documents: list[str], merges: int, repeats: int, console: Console) -> None:
    from bpe_scratch.training import train

    table = Table("train", "seconds", "spread")
    layers = ("compiled", "arrays") if find_spec("numba") else ("arrays",)
    runs: dict[str, Run] = {
        layer: lambda layer=layer: train(documents, 256 + merges, special_tokens=(), layer=layer)  # type: ignore[misc]
        for layer in layers
    }
    if find_spec("tokenizers"):
        runs["tokenizers"] = lambda: _train_hugging_face(documents, merges)
    for layer, run in runs.items():
        taken = []
        for _ in range(repeats if layer == "compiled" else 1):
            start = time.perf_counter()
            run()
            taken.append(time.perf_counter() - start)
        middle = statistics.median(taken)
        table.add_row(
            f"{layer}, {merges} merges", f"{middle:.2f}", f"{100 * (max(taken) - min(taken)) / middle:.0f} %"
        )
    console.print(table)


def _train_hugging_face(documents: list[str], merges: int) -> None:
    from tokenizers import Tokenizer as HuggingFace
    from tokenizers import models, pre_tokenizers, trainers

    model = HuggingFace(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(documents, trainer)
