"""Documents to tokens in several processes, in order, with a bounded number in flight.

Each worker is a plain subprocess that imports the tokenizer and nothing else. A ``multiprocessing``
pool would import the program that called us into every worker, and with it a whole framework when
that program is a trainer.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from gpt_data.encode_worker import GOOD, Encoded, encode, read_frame, unpack, write_frame
from gpt_data.errors import InputError, StoppedError
from gpt_data.sources import Document
from gpt_data.tokenizers import load_tokenizer

CHUNK_CHARACTERS = 2**19
CHUNK_DOCUMENTS = 2048
MAX_WORKERS = 8


class Chunk(NamedTuple):
    """Documents that are encoded together.

    Attributes:
        splits: The split of each document.
        texts: The documents; none is empty.
        next_document: Number in the source of the document after the last.
    """

    splits: list[str]
    texts: list[str]
    next_document: int


def chunks(documents: Iterable[Document], start: int) -> Iterator[Chunk]:
    """Cut a source into chunks of about half a million characters; empty documents are left out.

    Args:
        documents: The source from document ``start`` on.
        start: Number of the first document.
    """
    chunk, size = Chunk([], [], start), 0
    for number, (split, text) in enumerate(documents, start + 1):
        if text:
            chunk.splits.append(split)
            chunk.texts.append(text)
        size += len(text)
        chunk = chunk._replace(next_document=number)
        if size >= CHUNK_CHARACTERS or len(chunk.texts) >= CHUNK_DOCUMENTS:
            yield chunk
            chunk, size = Chunk([], [], number), 0
    yield chunk


def default_workers() -> int:
    """As many as there are processors to run on, and at most eight."""
    return min(
        MAX_WORKERS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


class Encoder:
    """Encodes chunks; a context manager that ends its workers.

    Args:
        tokenizer: A ``tokenizer.json``.
        workers: Number of processes; 1 encodes in this one.
    """

    def __init__(self, tokenizer: Path, workers: int) -> None:
        self.tokenizer = tokenizer
        self.workers = workers
        self._processes: list[subprocess.Popen[bytes]] = []
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def __enter__(self) -> Encoder:
        if self.workers > 1:
            for _ in range(self.workers):
                process = _start(self.tokenizer)
                self._processes.append(process)
                self._idle.put(process)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # killed rather than asked: a worker holds nothing, and one deep in a long document would not hear
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                _close_quietly(pipe)

    def map(self, source: Iterator[Chunk]) -> Generator[tuple[Chunk, Encoded], None, None]:
        """Each chunk with its tokens, in order.

        Args:
            source: The chunks; read only as far ahead as the workers need.

        Raises:
            InputError: If a document cannot be encoded.
            StoppedError: If a worker has died.
        """
        if self.workers <= 1:
            yield from self._map_here(source)
            return
        pending: deque[tuple[Chunk, Future[Encoded]]] = deque()
        with ThreadPoolExecutor(self.workers) as threads:
            try:
                for chunk in source:
                    pending.append((chunk, threads.submit(self._ask, chunk.texts)))
                    if len(pending) > 2 * self.workers:
                        done, answer = pending.popleft()
                        yield done, answer.result()
                while pending:
                    done, answer = pending.popleft()
                    yield done, answer.result()
            finally:
                for _, answer in pending:
                    answer.cancel()

    def _map_here(self, source: Iterator[Chunk]) -> Generator[tuple[Chunk, Encoded], None, None]:
        tokenizer = load_tokenizer(self.tokenizer)
        for chunk in source:
            try:
                yield chunk, encode(tokenizer, chunk.texts)
            except ValueError as error:
                raise InputError(_explain(chunk.texts, str(error))) from error

    def _ask(self, texts: list[str]) -> Encoded:
        process = self._idle.get()
        assert process.stdin is not None, "started with pipes"
        assert process.stdout is not None, "started with pipes"
        try:
            write_frame(process.stdin, json.dumps(texts).encode())
            status, body = process.stdout.read(1), read_frame(process.stdout)
        except OSError:
            status, body = b"", None
        finally:
            # a dead one too: whoever waits for a worker must hear of it rather than wait for ever
            self._idle.put(process)
        if body is None:
            raise StoppedError(
                f"an encoding worker ended with status {process.wait()}; "
                "run the same command again, with fewer --workers if memory was short"
            )
        if status != GOOD:
            raise InputError(_explain(texts, body.decode()))
        return unpack(body)


def _start(tokenizer: Path) -> subprocess.Popen[bytes]:
    # the worker must find the packages where this process found them, and must not find others in the
    # folder that it happens to be started in (-P)
    places = os.pathsep.join(place for place in sys.path if place)
    command = [sys.executable, "-P", "-m", "gpt_data.encode_worker", str(tokenizer.absolute())]
    environment = {**os.environ, "PYTHONPATH": places}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _close_quietly(pipe: object) -> None:
    try:
        pipe.close()  # type: ignore[attr-defined]
    except OSError:
        return  # bytes for a worker that is gone


def _explain(texts: list[str], reason: str) -> str:
    return f"cannot encode one of {len(texts)} documents that begin with {texts[0][:40]!r}: {reason}"
