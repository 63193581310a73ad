"""Tokens into shards, so that a writer killed at any moment goes on from its last commit.

Tokens are appended to ``NAME.partial`` files. ``commit`` flushes them and returns a state; the
caller keeps the states of all splits in one journal. On the way back everything beyond the
journal is cut off or removed, and is written again, byte for byte, from the documents that follow.

Shapes: n tokens, d documents.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int64, Integer

from gpt_data.errors import InputError
from gpt_data.manifest import NamedFile, ShardRecord
from gpt_data.shards import HEADER_BYTES, INT64, encode_header, token_dtype
from gpt_data.store.reading import sha256_of
from gpt_data.store.writing import sync_folder, write_all, write_errors

PARTIAL = ".partial"


@dataclass(frozen=True)
class SplitState:
    """What of a split is safe on the disk.

    Attributes:
        shards: Finished shards.
        tokens: Tokens in the unfinished shard.
        documents: Documents that begin in the unfinished shard.
    """

    shards: tuple[ShardRecord, ...] = ()
    tokens: int = 0
    documents: int = 0

    @property
    def total(self) -> int:
        """Tokens in all."""
        return sum(shard.tokens for shard in self.shards) + self.tokens


class SplitWriter:
    """Appends documents to one split.

    Args:
        folder: Where the shards go; this process holds its lock.
        vocab_size: Every id must be below this.
    """

    def __init__(
        self, folder: Path, split: str, *, vocab_size: int, shard_tokens: int, state: SplitState
    ) -> None:
        self.folder = folder
        self.split = split
        self.vocab_size = vocab_size
        self.shard_tokens = shard_tokens
        self.dtype = token_dtype(vocab_size)
        self.state = state
        self._handles: tuple[int, int] | None = None
        with write_errors(f"cannot write {folder}"):
            self._discard_uncommitted()

    def append(self, ids: Integer[np.ndarray, " n"], starts: Int[np.ndarray, " d"]) -> None:
        """Append tokens, cutting shards where they are full.

        Raises:
            InputError: If an id is outside the vocabulary; nothing is written then.
            WriteError: If the disk does not take it.
        """
        # before the cast to two bytes, which would turn 65536 into a valid 0
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocab_size):
            wrong = (ids < 0) | (ids >= self.vocab_size)
            raise InputError(
                f"split {self.split}: token id {ids[np.argmax(wrong)]} is outside "
                f"the vocabulary of {self.vocab_size}"
            )
        while ids.size:
            room = self.shard_tokens - self.state.tokens
            here = starts[starts < room]
            self._append_piece(ids[:room], here)
            ids, starts = ids[room:], starts[here.size :] - room
            if self.state.tokens == self.shard_tokens:
                self._seal()

    def commit(self) -> SplitState:
        """Flush what was appended to the disk and return the state to put into the journal."""
        if self._handles is not None:
            with write_errors(f"cannot write {self.folder}"):
                for handle in self._handles:
                    os.fsync(handle)
                # the journal must not outlive the names of the files that it counts on
                sync_folder(self.folder)
        return self.state

    def finish(self) -> SplitState:
        """Finish the last shard, if it holds a token, and return the final state."""
        if self.state.tokens:
            self._seal()
        return self.state

    def close(self) -> None:
        """Close the files; what was not committed is lost."""
        for handle in self._handles or ():
            os.close(handle)
        self._handles = None

    def _paths(self, index: int) -> tuple[Path, Path]:
        stem = f"{self.split}-{index:05d}"
        return self.folder / f"{stem}.bin", self.folder / f"{stem}.docs"

    def _ends(self) -> Iterator[tuple[Path, int]]:
        """The unfinished files, and where in them ends what the state knows."""
        tokens, starts = self._paths(len(self.state.shards))
        yield tokens, HEADER_BYTES + self.state.tokens * self.dtype.itemsize
        yield starts, self.state.documents * INT64.itemsize

    def _append_piece(self, ids: Integer[np.ndarray, " n"], starts: Int64[np.ndarray, " d"]) -> None:
        with write_errors(f"cannot write {self.folder}"):
            tokens_file, starts_file = self._open()
            write_all(tokens_file, np.ascontiguousarray(ids, self.dtype).data.cast("B"))
            write_all(starts_file, (starts + self.state.tokens).astype(INT64).tobytes())
        self.state = SplitState(
            self.state.shards, self.state.tokens + ids.size, self.state.documents + starts.size
        )

    def _open(self) -> tuple[int, int]:
        """Open the unfinished files at the end of what is committed."""
        if self._handles is None:
            handles = []
            for path, end in self._ends():
                handle = os.open(f"{path}{PARTIAL}", os.O_RDWR | os.O_CREAT, 0o644)
                os.ftruncate(handle, end)
                os.lseek(handle, end, os.SEEK_SET)
                handles.append(handle)
            self._handles = (handles[0], handles[1])
        return self._handles

    def _seal(self) -> None:
        """Give the full shard its header and its name."""
        paths = self._paths(len(self.state.shards))
        with write_errors(f"cannot write {paths[0]}"):
            tokens_file, starts_file = self._open()
            os.pwrite(tokens_file, encode_header(self.dtype, self.state.tokens), 0)
            os.fsync(tokens_file)
            os.fsync(starts_file)
            self.close()
            for path in paths:
                os.rename(f"{path}{PARTIAL}", path)  # noqa: PTH104 - what the crash tests count
            sync_folder(self.folder)
        data, offsets = (NamedFile(path.name, path.stat().st_size, sha256_of(path)) for path in paths)
        record = ShardRecord(self.state.tokens, self.state.documents, data, offsets)
        self.state = SplitState((*self.state.shards, record))

    def _discard_uncommitted(self) -> None:
        """Bring the folder back to the journal: reopen the shard it leaves open, drop all beyond it."""
        current = len(self.state.shards)
        pattern = re.compile(rf"{re.escape(self.split)}-(\d{{5}})\.(bin|docs)({re.escape(PARTIAL)})?")
        for path in sorted(self.folder.iterdir()):
            match = pattern.fullmatch(path.name)
            if match is None or int(match[1]) < current:
                continue
            if int(match[1]) > current:
                path.unlink()
            elif match[3] is None:
                # it was sealed after the journal was written: its front part is what the journal knows
                path.rename(f"{path}{PARTIAL}")
        for path, need in self._ends():
            partial = Path(f"{path}{PARTIAL}")
            size = partial.stat().st_size if partial.exists() else 0
            if self.state.tokens and size < need:
                raise InputError(
                    f"{partial} has {size} bytes; the journal says {need}: empty the folder and start over"
                )
