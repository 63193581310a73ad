"""Text to token shards: one call that begins, goes on with or opens a folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpe_scratch

from gpt_data.dataset import Dataset
from gpt_data.errors import InputError
from gpt_data.journal import JOURNAL_NAME, Journal, load_journal
from gpt_data.manifest import MANIFEST_NAME, SPLITS, TOKENIZER_NAME, load_manifest
from gpt_data.mixture import PREFIX
from gpt_data.parts import parse_part
from gpt_data.pipeline import Preparation
from gpt_data.progress import OnProgress, Progress
from gpt_data.settings import MAX_DOCUMENT_BYTES, SHARD_TOKENS, Settings
from gpt_data.sources import Source, open_source
from gpt_data.store.lock import FolderLock
from gpt_data.store.writing import probe_folder, write_atomic, write_errors
from gpt_data.tokenizers import build_tokenizer, tokenizer_identity
from gpt_data.writer import SplitState


def prepare(
    source: str,
    tokenizer: str,
    out: Path | str,
    *,
    tokenizer_files: Path | None = None,
    max_tokens: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    max_document_bytes: int = MAX_DOCUMENT_BYTES,
    only: str | None = None,
    part: str | None = None,
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
        tokenizer_files: Folder with GPT-2's tokenizer files.
        max_tokens: Each split ends with the document that brings it to this many tokens.
        shard_tokens: Tokens of a full shard.
        max_document_bytes: Largest document.
        only: The split that is wanted, ``train`` or ``val``; both if None.
        part: The part of the source that is wanted, as in ``"3/16"``; all of it if None.
        on_progress: Told after every chunk; what it raises ends the preparation, which can be gone on
            with.
        should_stop: Asked after every chunk; True ends the preparation likewise.
        wait_for_lock: Wait for another process that writes ``out`` rather than refuse.

    Raises:
        InputError: If the input is unusable, or ``out`` holds something else.
        WriteError: If ``out`` cannot be written, or is being written by another process.
        StoppedError: If it was stopped or the source failed; the same call goes on.
    """
    if source.partition(":")[0] in ("shards", "nanogpt"):
        raise InputError(f"{source} is made of tokens already: nothing to prepare")
    if source.startswith(PREFIX):
        raise InputError(f"{source}: prepare each source by itself; a trainer mixes them")
    folder = Path(out)
    tell = on_progress if on_progress is not None else _tell_nobody
    if part is not None and tokenizer.startswith("bpe-scratch:"):
        raise InputError(
            f"--part needs a tokenizer that all parts share, and {tokenizer} is trained on what is prepared: "
            "give gpt2, bytes or a tokenizer.json (bpe-scratch train makes one)"
        )
    wanted = None if part is None else parse_part(part)
    settings = Settings(max_tokens, shard_tokens, max_document_bytes, only, wanted)
    task = _Task(folder, source, tokenizer, tokenizer_files, settings, tell, should_stop)
    with write_errors(f"cannot write in {folder}"):
        finished = (folder / MANIFEST_NAME).exists()
    if not finished:
        probe_folder(folder)
        with FolderLock(folder, wait=wait_for_lock, should_stop=should_stop, on_wait=task.notice):
            task.run()
    task.check_finished()
    return Dataset.open(folder)


@dataclass(frozen=True)
class _Task:
    """What ``prepare`` was asked for."""

    folder: Path
    source: str
    tokenizer: str
    tokenizer_files: Path | None
    settings: Settings
    tell: OnProgress
    should_stop: Callable[[], bool] | None

    def notice(self, line: str) -> None:
        self.tell(Progress("notice", line))

    def open_source(self, journal: Journal | None) -> Source:
        return open_source(
            self.source,
            self.settings.max_document_bytes,
            part=self.settings.part,
            pin=None if journal is None else journal.pin,
            on_notice=self.notice,
            should_stop=self.should_stop,
        )

    def plan(self, source: Source) -> dict[str, Any]:
        return {**source.identity(), **tokenizer_identity(self.tokenizer), **self.settings.as_plan()}

    def run(self) -> None:
        """Begin or go on; the folder's lock is held."""
        if (self.folder / MANIFEST_NAME).exists():
            return  # another process has finished it while this one waited
        journal, tokenizer = load_journal(self.folder), None
        source = self.open_source(journal)
        if journal is None:
            journal, tokenizer = self._begin(source)
        _check_plan(self.folder / JOURNAL_NAME, journal.plan, self.plan(source))
        for note in source.notes:
            self.notice(note)
        with Preparation(self.folder, source, self.settings, journal, tokenizer) as preparation:
            preparation.run(self.tell, self.should_stop)

    def check_finished(self) -> None:
        """Refuse a finished folder that was made of something else."""
        plan = load_manifest(self.folder).plan
        wanted = self.plan(self.open_source(None))
        _check_plan(self.folder / MANIFEST_NAME, plan, wanted)
        # the manifest is what counts now; a journal that stays, as in a read-only folder, does no harm
        journal = self.folder / JOURNAL_NAME
        if journal.exists():
            with suppress(OSError):
                journal.unlink()

    def _begin(self, source: Source) -> tuple[Journal, bpe_scratch.Tokenizer]:
        """Build the tokenizer and write the first journal."""
        # a beginning that was cut off leaves its tokenizer, and hidden files
        names = sorted(path.name for path in self.folder.iterdir())
        strangers = [name for name in names if name[0] != "." and name != TOKENIZER_NAME]
        if strangers:
            raise InputError(
                f"{self.folder} holds {strangers[0]}, which no journal knows; choose an empty folder"
            )
        plan, states = self.plan(source), dict.fromkeys(SPLITS, SplitState())
        self.tell(Progress("tokenizer", total_bytes=source.total_bytes))
        tokenizer = build_tokenizer(self.tokenizer, self.tokenizer_files, source.sample())
        record = write_atomic(self.folder / TOKENIZER_NAME, tokenizer.to_json().encode())
        journal = Journal(plan, source.pin(), record.sha256, 0, states)
        journal.save(self.folder)
        return journal, tokenizer


def _check_plan(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    names = [name for name in (*wanted, "only", "part") if found.get(name) != wanted.get(name)]
    if names:
        name = names[0]
        before, now = found.get(name), wanted.get(name)
        raise InputError(
            f"{path} was begun with another {name}: {_short(before, now)}, "
            f"now {_short(now, before)}; give the same settings or another folder"
        )


def _short(value: object, other: object) -> str:
    """A value; of a list the first that the other list lacks."""
    if isinstance(value, list) and isinstance(other, list):
        value = next((item for item in value if item not in other), "without it")
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _tell_nobody(progress: Progress) -> None:
    del progress
