"""From documents to finished shards: resumable at every chunk, the same bytes however often it was stopped.

Shapes: n tokens, d documents, k documents chosen.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt32

from gpt_data.encode_worker import Encoded
from gpt_data.encoder import Chunk, Encoder, chunks
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


class Preparation:
    """The writers of one preparation and the journal that they commit to; a context manager.

    Args:
        folder: Where the shards go; this process holds its lock.
        source: The documents.
        settings: What was asked for.
        journal: Where to go on.

    Raises:
        InputError: If ``folder`` is not as the journal left it.
    """

    def __init__(self, folder: Path, source: Source, settings: Settings, journal: Journal) -> None:
        self.folder = folder
        self.source = source
        self.settings = settings
        self.journal = journal
        self.text_bytes = 0
        path = folder / TOKENIZER_NAME
        if sha256_of(path) != journal.tokenizer_sha256:
            raise InputError(f"{path} is not the tokenizer that {folder / JOURNAL_NAME} began with")
        tokenizer = load_tokenizer(path)
        assert tokenizer.end_of_text is not None, "build_tokenizer refuses these"
        self.vocab_size, self.end_of_text = tokenizer.vocab_size, tokenizer.end_of_text
        self.writers = {split: self._writer(split, state) for split, state in journal.splits.items()}

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *error: object) -> None:
        for writer in self.writers.values():
            writer.close()

    def run(self, workers: int, tell: OnProgress, should_stop: Callable[[], bool] | None) -> None:
        """Encode what is left of the source, finish the shards and write the manifest."""
        start = self.journal.next_document
        with (
            Encoder(self.folder / TOKENIZER_NAME, workers) as encoder,
            closing(encoder.map(chunks(self.source.documents(start), start))) as encoded,
        ):
            self._write_all(encoded, tell, should_stop)
        self._finish()

    def _write_all(
        self,
        encoded: Iterator[tuple[Chunk, Encoded]],
        tell: OnProgress,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        committed = time.monotonic()
        while not self._enough("train"):
            try:
                tell(self._progress())
                if should_stop is not None and should_stop():
                    raise StoppedError(f"stopped; the same command goes on with {self.folder}")
                item = next(encoded, None)
            except BaseException:
                # between two chunks all splits agree on the next document, so this is worth keeping
                self._commit()
                raise
            if item is None:
                return
            sealed = self._append(*item)
            if sealed or time.monotonic() - committed > COMMIT_SECONDS:
                self._commit()
                committed = time.monotonic()

    def _append(self, chunk: Chunk, encoded: Encoded) -> bool:
        """Write a chunk; return whether a shard was finished."""
        before = [len(writer.state.shards) for writer in self.writers.values()]
        splits = np.array(chunk.splits, dtype=np.str_)
        for split, writer in self.writers.items():
            chosen = self._limit(split, np.flatnonzero(splits == split), encoded)
            if chosen.size:
                writer.append(*_select(encoded, chosen))
        self.text_bytes += sum(map(len, chunk.texts))
        self.journal = replace(self.journal, next_document=chunk.next_document)
        return before != [len(writer.state.shards) for writer in self.writers.values()]

    def _limit(
        self, split: str, chosen: Int64[np.ndarray, " d"], encoded: Encoded
    ) -> Int64[np.ndarray, " k"]:
        """The documents of a split up to the one that reaches ``max_tokens``."""
        if self.settings.max_tokens is None:
            return chosen
        lengths = (encoded.starts[1:] - encoded.starts[:-1])[chosen]
        before = self.writers[split].state.total + np.cumsum(lengths) - lengths
        within: np.ndarray = chosen[before < self.settings.max_tokens]
        return within

    def _enough(self, split: str) -> bool:
        limit = self.settings.max_tokens
        return limit is not None and self.writers[split].state.total >= limit

    def _commit(self) -> None:
        states = {split: writer.commit() for split, writer in self.writers.items()}
        self.journal = replace(self.journal, splits=states)
        self.journal.save(self.folder)

    def _finish(self) -> None:
        self._commit()
        if not self.writers["train"].state.total:
            raise InputError(f"source {self.journal.plan['source']} holds no training text")
        states = {split: writer.finish() for split, writer in self.writers.items()}
        path = self.folder / TOKENIZER_NAME
        Manifest(
            plan=self.journal.plan | {"pin": self.journal.pin},
            vocab_size=self.vocab_size,
            end_of_text=self.end_of_text,
            tokenizer=NamedFile(path.name, path.stat().st_size, sha256_of(path)),
            splits={split: state.shards for split, state in states.items()},
            versions={name: version(name) for name in ("gpt-data", "bpe-scratch", "numpy")}
            | {"python": platform.python_version()},
        ).save(self.folder)

    def _writer(self, split: str, state: SplitState) -> SplitWriter:
        return SplitWriter(
            self.folder,
            split,
            vocab_size=self.vocab_size,
            shard_tokens=self.settings.shard_tokens,
            state=state,
        )

    def _progress(self) -> Progress:
        return Progress(
            "tokens",
            documents=self.journal.next_document,
            tokens=self.writers["train"].state.total,
            max_tokens=self.settings.max_tokens,
            text_bytes=self.text_bytes,
            total_bytes=self.source.total_bytes,
        )


def _select(
    encoded: Encoded, chosen: Int64[np.ndarray, " k"]
) -> tuple[UInt32[np.ndarray, " n"], Int64[np.ndarray, " k"]]:
    """Tokens and starts of the chosen documents, end to end."""
    lengths = encoded.starts[1:] - encoded.starts[:-1]
    wanted = np.zeros(lengths.size, bool)
    wanted[chosen] = True
    ends = np.cumsum(lengths[chosen])
    return encoded.ids[np.repeat(wanted, lengths)], ends - lengths[chosen]
