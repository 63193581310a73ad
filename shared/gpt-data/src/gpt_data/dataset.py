"""A folder of token shards, opened and verified: two streams, a vocabulary and a fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt_data.errors import DataError
from gpt_data.journal import JOURNAL_NAME
from gpt_data.manifest import MANIFEST_NAME, SPLITS, TOKENIZER_NAME, FileRecord, Manifest, load_manifest
from gpt_data.shards import HEADER_BYTES, Shard, token_dtype
from gpt_data.storage import sha256_of, write_atomic
from gpt_data.store.reading import open_regular, read_bytes
from gpt_data.stream import TokenStream

VERIFIED_NAME = ".verified.json"
MAX_TOKENIZER_BYTES = 256 * 2**20
GPT2_VOCAB_SIZE, GPT2_END_OF_TEXT = 50257, 50256
EDGE_BYTES = 2**20
REMEDY = "remove the folder and prepare it again"


class Vocabulary(NamedTuple):
    """What token ids mean.

    Attributes:
        size: Every id is below this.
        end_of_text: The id that opens each document.
        tokenizer_json: The tokenizer's file, if there is one.
    """

    size: int
    end_of_text: int
    tokenizer_json: bytes | None = None


GPT2_VOCABULARY = Vocabulary(GPT2_VOCAB_SIZE, GPT2_END_OF_TEXT)


class Dataset:
    """Token shards that are open for reading.

    Attributes:
        folder: Where they are.
        train: Stream of the training split.
        val: Stream of the held-out split; it may be empty.
        manifest: The folder's manifest; None for published shards, which have none.
        vocabulary: What the ids mean.
        fingerprint: sha256 that changes with anything that changes a batch.
    """

    def __init__(
        self,
        folder: Path,
        streams: tuple[TokenStream, TokenStream],
        vocabulary: Vocabulary,
        fingerprint: str,
        manifest: Manifest | None = None,
    ) -> None:
        self.folder = folder
        self.train, self.val = streams
        self.vocabulary = vocabulary
        self.fingerprint = fingerprint
        self.manifest = manifest

    @property
    def vocab_size(self) -> int:
        """Every token id is below this."""
        return self.vocabulary.size

    @property
    def end_of_text(self) -> int:
        """The id that opens each document."""
        return self.vocabulary.end_of_text

    @property
    def tokenizer_json(self) -> bytes | None:
        """Content of the tokenizer's file, if there is one."""
        return self.vocabulary.tokenizer_json

    @staticmethod
    def open(folder: Path | str, vocabulary: Vocabulary = GPT2_VOCABULARY) -> Dataset:
        """Open a prepared folder, or one of published shards without a manifest.

        Sizes and headers are checked every time; the sha256 of each file once for as long as its
        inode, size and time stay the same.

        Args:
            folder: The folder.
            vocabulary: What the ids mean if there is no manifest to say so.

        Raises:
            DataError: If anything is missing or damaged.
        """
        folder = Path(folder)
        if (folder / MANIFEST_NAME).exists():
            return _open_prepared(folder)
        return _open_published(folder, vocabulary)

    def close(self) -> None:
        """Close every shard."""
        self.train.close()
        self.val.close()


def _open_prepared(folder: Path) -> Dataset:
    manifest = load_manifest(folder)
    _verify(folder, manifest.files())
    vocabulary = Vocabulary(
        manifest.vocab_size,
        manifest.end_of_text,
        read_bytes(folder / TOKENIZER_NAME, MAX_TOKENIZER_BYTES),
    )
    train, val = (_open_split(folder, manifest, split) for split in SPLITS)
    return Dataset(folder, (train, val), vocabulary, manifest.fingerprint, manifest)


def _open_split(folder: Path, manifest: Manifest, split: str) -> TokenStream:
    records = manifest.splits[split]
    shards = [Shard(folder / record.data.name) for record in records]
    for shard, record in zip(shards, records, strict=True):
        want = token_dtype(manifest.vocab_size)
        if (shard.tokens, shard.dtype) != (record.tokens, want):
            raise DataError(
                f"{shard.path} holds {shard.tokens} tokens of {shard.dtype}; "
                f"the manifest says {record.tokens} of {want}"
            )
    return TokenStream(
        split,
        shards,
        vocab_size=manifest.vocab_size,
        end_of_text=manifest.end_of_text,
        documents=[folder / record.offsets.name for record in records],
    )


def _verify(folder: Path, files: Sequence[FileRecord]) -> None:
    """Check each file's size, and its sha256 unless this very file was found good before."""
    stamps = _load_stamps(folder)
    fresh = {}
    for file in files:
        path = folder / file.name
        handle = open_regular(path)
        try:
            status = os.fstat(handle)
        finally:
            os.close(handle)
        if status.st_size != file.bytes:
            raise DataError(f"{path} has {status.st_size} bytes; the manifest says {file.bytes}; {REMEDY}")
        fresh[file.name] = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, file.sha256]
        if stamps.get(file.name) != fresh[file.name]:
            found = sha256_of(path)
            if found != file.sha256:
                raise DataError(
                    f"{path} is damaged: sha256 {found[:12]}..., the manifest says {file.sha256[:12]}..."
                )
    if fresh != stamps:
        _save_stamps(folder, fresh)


def _load_stamps(folder: Path) -> dict[str, object]:
    try:
        stamps = json.loads(read_bytes(folder / VERIFIED_NAME, 2**24))
    except (ValueError, RecursionError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _save_stamps(folder: Path, stamps: dict[str, list[object]]) -> None:
    try:
        write_atomic(folder / VERIFIED_NAME, json.dumps(stamps).encode())
    except DataError:
        return  # a read-only folder is verified again next time


def _open_published(folder: Path, vocabulary: Vocabulary) -> Dataset:
    if not folder.is_dir():
        raise DataError(f"no folder {folder}")
    if (folder / JOURNAL_NAME).exists():
        raise DataError(f"{folder} is not finished: run the same gpt-data-prepare command again")
    streams = tuple(_published_split(folder, split, vocabulary) for split in SPLITS)
    train, val = streams
    if not train.tokens:
        raise DataError(f"{folder} holds neither {MANIFEST_NAME} nor a file *train*.bin with tokens")
    return Dataset(folder, (train, val), vocabulary, _published_fingerprint(folder, vocabulary))


def _published_files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"*{split}*.bin"), key=lambda path: path.name)


def _published_split(folder: Path, split: str, vocabulary: Vocabulary) -> TokenStream:
    shards = [Shard(path) for path in _published_files(folder, split)]
    return TokenStream(split, shards, vocab_size=vocabulary.size, end_of_text=vocabulary.end_of_text)


def _published_fingerprint(folder: Path, vocabulary: Vocabulary) -> str:
    """Names, sizes and both ends of each file: the whole of 20 GB is not read at every start."""
    digest = hashlib.sha256(f"{vocabulary.size} {vocabulary.end_of_text}".encode())
    for split in SPLITS:
        for path in _published_files(folder, split):
            with os.fdopen(open_regular(path), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{split} {path.name} {size}".encode())
                digest.update(file.read(HEADER_BYTES + EDGE_BYTES))
                file.seek(max(0, size - EDGE_BYTES))
                digest.update(file.read())
    return digest.hexdigest()
