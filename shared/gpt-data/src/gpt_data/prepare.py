"""Text to token shards: resumable, in worker processes, the same bytes however often it was stopped.

Shapes: n tokens, d documents.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from gpt_data.dataset import Dataset
from gpt_data.encode_worker import Encoded
from gpt_data.encoder import Chunk, Encoder, chunks, default_workers
from gpt_data.errors import DataError, DataStoppedError
from gpt_data.journal import JOURNAL_NAME, Journal, load_journal
from gpt_data.manifest import MANIFEST_NAME, SPLITS, TOKENIZER_NAME, FileRecord, Manifest, load_manifest
from gpt_data.progress import OnProgress, Progress
from gpt_data.settings import MAX_DOCUMENT_BYTES, SHARD_TOKENS, Settings
from gpt_data.sources import Source, open_source
from gpt_data.storage import FolderLock, make_folder, sha256_of, write_atomic
from gpt_data.tokenizers import build_tokenizer, load_tokenizer, tokenizer_identity
from gpt_data.writer import SplitState, SplitWriter

COMMIT_SECONDS = 2.0


def prepare(
    source: str,
    tokenizer: str,
    out: Path | str,
    *,
    tokenizer_files: Path | None = None,
    max_tokens: int | None = None,
    workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    on_progress: OnProgress | None = None,
    should_stop: Callable[[], bool] | None = None,
    wait_for_lock: bool = False,
) -> Dataset:
    """Write the token shards of a source into ``out``, or go on with it, and open them.

    A finished folder opens at once. One that was interrupted at any moment continues from its journal,
    and its files come out byte for byte as if it had not been.

    Args:
        source: One of ``gpt_data.sources.KINDS``, shards excepted.
        tokenizer: One of ``gpt_data.tokenizers.KINDS``.
        out: The folder.
        tokenizer_files: Folder with GPT-2's tokenizer files.
        max_tokens: Each split ends with the document that brings it to this many tokens.
        workers: Processes that encode; one for each processor if None.
        shard_tokens: Tokens of a full shard.
        max_document_bytes: Largest document.
        on_progress: Told after every chunk; what it raises ends the preparation, which can be gone on
            with.
        should_stop: Asked after every chunk; True ends the preparation likewise.
        wait_for_lock: Wait for another process that writes ``out`` rather than refuse.

    Raises:
        DataError: If the input is unusable, or ``out`` holds something else.
        DataWriteError: If ``out`` cannot be written, or is being written by another process.
        DataStoppedError: If it was stopped or the source failed; the same call goes on.
    """
    if source.startswith("shards:"):
        raise DataError(f"{source} is made of tokens already: nothing to prepare")
    if workers is not None and workers < 1:
        raise DataError(f"workers={workers} is not positive")
    folder = Path(out)
    tell = on_progress if on_progress is not None else _tell_nobody
    settings = Settings(max_tokens, shard_tokens, max_document_bytes)
    make_folder(folder)
    with FolderLock(folder, wait=wait_for_lock, should_stop=should_stop):
        journal = load_journal(folder)
        text = open_source(
            source,
            max_document_bytes,
            pin=None if journal is None else journal.pin,
            on_notice=lambda line: tell(Progress("notice", line)),
        )
        plan = {**text.identity(), **tokenizer_identity(tokenizer), **settings.as_plan()}
        if (folder / MANIFEST_NAME).exists():
            _check_plan(folder / MANIFEST_NAME, load_manifest(folder).plan, plan)
        else:
            if journal is None:
                journal = _begin(folder, text, tokenizer, tokenizer_files, plan, tell)
            _check_plan(folder / JOURNAL_NAME, journal.plan, plan)
            with _Preparation(folder, text, settings, journal) as preparation:
                preparation.run(workers or default_workers(), tell, should_stop)
        (folder / JOURNAL_NAME).unlink(missing_ok=True)
    return Dataset.open(folder)


class _Preparation:
    """The writers of one run and the journal that they commit to."""

    def __init__(self, folder: Path, source: Source, settings: Settings, journal: Journal) -> None:
        self.folder = folder
        self.source = source
        self.settings = settings
        self.journal = journal
        self.text_bytes = 0
        path = folder / TOKENIZER_NAME
        if sha256_of(path) != journal.tokenizer_sha256:
            raise DataError(f"{path} is not the tokenizer that {folder / JOURNAL_NAME} began with")
        tokenizer = load_tokenizer(path)
        assert tokenizer.end_of_text is not None, "build_tokenizer refuses these"
        self.vocab_size, self.end_of_text = tokenizer.vocab_size, tokenizer.end_of_text
        self.writers = {split: self._writer(split, state) for split, state in journal.splits.items()}

    def __enter__(self) -> _Preparation:
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
                    raise DataStoppedError(f"stopped; the same command goes on with {self.folder}")
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

    def _limit(self, split: str, chosen: np.ndarray, encoded: Encoded) -> np.ndarray:
        """The documents of a split up to the one that reaches ``max_tokens``."""
        if self.settings.max_tokens is None:
            return chosen
        lengths = (encoded.starts[1:] - encoded.starts[:-1])[chosen]
        before = self.writers[split].state.total + np.cumsum(lengths) - lengths
        return chosen[before < self.settings.max_tokens]

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
            raise DataError(f"source {self.journal.plan['source']} holds no training text")
        states = {split: writer.finish() for split, writer in self.writers.items()}
        path = self.folder / TOKENIZER_NAME
        Manifest(
            plan=self.journal.plan | {"pin": self.journal.pin},
            vocab_size=self.vocab_size,
            end_of_text=self.end_of_text,
            tokenizer=FileRecord(path.name, path.stat().st_size, sha256_of(path)),
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


def _begin(
    folder: Path, source: Source, tokenizer: str, files: Path | None, plan: dict[str, Any], tell: OnProgress
) -> Journal:
    """Build the tokenizer and write the first journal."""
    strangers = [path.name for split in SPLITS for path in folder.glob(f"{split}-*.bin*")]
    if strangers:
        raise DataError(f"{folder} holds {strangers[0]}, which no journal knows; choose an empty folder")
    tell(Progress("tokenizer", total_bytes=source.total_bytes))
    built = build_tokenizer(tokenizer, files, source.sample())
    write_atomic(folder / TOKENIZER_NAME, built.to_json().encode())
    journal = Journal(plan, source.pin(), built.sha256, 0, dict.fromkeys(SPLITS, SplitState()))
    journal.save(folder)
    return journal


def _select(encoded: Encoded, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and starts of the chosen documents, end to end."""
    lengths = encoded.starts[1:] - encoded.starts[:-1]
    wanted = np.zeros(lengths.size, bool)
    wanted[chosen] = True
    ends = np.cumsum(lengths[chosen])
    return encoded.ids[np.repeat(wanted, lengths)], ends - lengths[chosen]


def _check_plan(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    names = [name for name in wanted if found.get(name) != wanted[name]]
    if names:
        name = names[0]
        raise DataError(
            f"{path} was begun with another {name}: {_short(found.get(name))}, now {_short(wanted[name])}; "
            "give the same settings or another folder"
        )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tell_nobody(progress: Progress) -> None:
    del progress


def main() -> None:
    """Run the command ``gpt-data-prepare``."""
    # tyro and rich load in a second that a library user should not pay
    from gpt_data.command import run

    raise SystemExit(run())
