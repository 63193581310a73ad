"""From documents to finished shards: resumable at every chunk, the same bytes however often one stops."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import bpe_scratch
import numpy as np

from gpt_data.ahead import read_ahead
from gpt_data.encoding import Chunk, Encoded, chunks, encode
from gpt_data.errors import InputError, StoppedError
from gpt_data.journal import JOURNAL_NAME, Journal
from gpt_data.manifest import TOKENIZER_NAME, Manifest, NamedFile
from gpt_data.progress import OnProgress, Progress
from gpt_data.settings import Settings
from gpt_data.sources import Source
from gpt_data.store.reading import sha256_of
from gpt_data.tokenizers import load_tokenizer
from gpt_data.writer import SplitState, SplitWriter

COMMIT_SECONDS = 2.0
CHUNKS_AHEAD = 2


class Preparation:
    """The writers of one preparation and the journal that they commit to; a context manager.

    Args:
        folder: Where the shards go; this process holds its lock.
        journal: Where to go on.
        tokenizer: That of the journal, if it has just been made; read from ``folder`` if None.

    Raises:
        InputError: If ``folder`` is not as the journal left it.
    """

    def __init__(
        self,
        folder: Path,
        source: Source,
        settings: Settings,
        journal: Journal,
        tokenizer: bpe_scratch.Tokenizer | None = None,
    ) -> None:
        self.folder = folder
        self.source = source
        self.settings = settings
        self.journal = journal
        self.text_bytes = 0
        path = folder / TOKENIZER_NAME
        if sha256_of(path) != journal.tokenizer_sha256:
            raise InputError(f"{path} is not the tokenizer that {folder / JOURNAL_NAME} began with")
        self.tokenizer = load_tokenizer(path) if tokenizer is None else tokenizer
        self.writers = {split: self._writer(split, state) for split, state in journal.splits.items()}

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self.writers.values():
            writer.close()

    def run(self, tell: OnProgress, should_stop: Callable[[], bool] | None) -> None:
        """Encode what is left of the source, finish the shards and write the manifest."""
        start = self.journal.next_document
        # reading, unpacking and encoding run without the interpreter's lock for most of their time
        with read_ahead(chunks(self.source.documents(start), start), CHUNKS_AHEAD) as ahead:
            self._write_all(ahead, tell, should_stop)
        self._finish()

    def _write_all(
        self, chunked: Iterator[Chunk], tell: OnProgress, should_stop: Callable[[], bool] | None
    ) -> None:
        committed = time.monotonic()
        while not self._enough("train"):
            try:
                tell(self._progress())
                if should_stop is not None and should_stop():
                    raise StoppedError(f"stopped; the same command goes on with {self.folder}")
                chunk = next(chunked, None)
                encoded = None if chunk is None else self._encode(chunk)
            except BaseException:
                # between two chunks all splits agree on the next document, so this is worth keeping
                self._commit()
                raise
            if chunk is None or encoded is None:
                return
            self._append(chunk, encoded)
            if time.monotonic() - committed > COMMIT_SECONDS:
                self._commit()
                committed = time.monotonic()

    def _encode(self, chunk: Chunk) -> dict[str, Encoded]:
        wanted = self.settings.only
        parts = {split: texts for split, texts in chunk.texts.items() if wanted in (None, split)}
        return {split: encode(self.tokenizer, texts) for split, texts in parts.items()}

    def _append(self, chunk: Chunk, encoded: dict[str, Encoded]) -> None:
        for split, documents in encoded.items():
            wanted = self._limit(split, documents)
            self.writers[split].append(wanted.ids, wanted.starts[:-1])
        self.text_bytes += chunk.characters
        self.journal = replace(self.journal, next_document=chunk.next_document)

    def _limit(self, split: str, encoded: Encoded) -> Encoded:
        """The documents of a split up to the one that reaches ``max_tokens``."""
        if self.settings.max_tokens is None:
            return encoded
        before = self.writers[split].state.total + encoded.starts[:-1]
        return encoded.first(int(np.count_nonzero(before < self.settings.max_tokens)))

    def _enough(self, split: str) -> bool:
        limit = self.settings.max_tokens
        return limit is not None and self.writers[split].state.total >= limit

    def _commit(self) -> None:
        states = {split: writer.commit() for split, writer in self.writers.items()}
        self.journal = replace(self.journal, splits=states)
        self.journal.save(self.folder)

    def _finish(self) -> None:
        self._commit()
        assert self.tokenizer.end_of_text is not None, "build_tokenizer refuses these"
        needed = self.settings.only or "train"
        if not self.writers[needed].state.total:
            what = {"train": "training", "val": "held-out"}[needed]
            raise InputError(f"source {self.journal.plan['source']} holds no {what} text")
        states = {split: writer.finish() for split, writer in self.writers.items()}
        path = self.folder / TOKENIZER_NAME
        Manifest(
            plan=self.journal.plan | {"pin": self.journal.pin},
            vocab_size=self.tokenizer.vocab_size,
            end_of_text=self.tokenizer.end_of_text,
            tokenizer=NamedFile(path.name, path.stat().st_size, sha256_of(path)),
            splits={split: state.shards for split, state in states.items()},
            versions={name: version(name) for name in ("gpt-data", "bpe-scratch", "numpy")}
            | {"python": platform.python_version()},
        ).save(self.folder)

    def _writer(self, split: str, state: SplitState) -> SplitWriter:
        return SplitWriter(
            self.folder,
            split,
            vocab_size=self.tokenizer.vocab_size,
            shard_tokens=self.settings.shard_tokens,
            state=state,
        )

    def _progress(self) -> Progress:
        return Progress(
            "tokens",
            documents=self.journal.next_document,
            tokens=self.writers[self.settings.only or "train"].state.total,
            max_tokens=self.settings.max_tokens,
            text_bytes=self.text_bytes,
            total_bytes=self.source.total_bytes,
        )
