"""Shards that others published: llm.c's, told apart by their names, and nanoGPT's, which have no header."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gpt_data.errors import InputError
from gpt_data.manifest import MANIFEST_NAME, SPLITS
from gpt_data.shards import HEADER_BYTES, Shard
from gpt_data.store.reading import open_regular
from gpt_data.stream import TokenStream

EDGE_BYTES = 2**20
NANOGPT_TRAIN, NANOGPT_VAL = "train.bin", "val.bin"


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


GPT2_VOCABULARY = Vocabulary(50257, 50256)


class Published(NamedTuple):
    """What is known of published shards.

    Attributes:
        streams: Training and held-out split; the latter may be empty.
        vocabulary: What the ids mean.
        fingerprint: sha256 over names, sizes and both ends of each file: the whole of 20 GB is not read at
            every start.
    """

    streams: tuple[TokenStream, TokenStream]
    vocabulary: Vocabulary
    fingerprint: str


def open_published(folder: Path, vocabulary: Vocabulary) -> Published:
    """Open a folder of shards with ``train`` or ``val`` as a word of their names.

    Raises:
        InputError: If there is none to train on, a file's name says both, or one is no shard.
    """
    if not folder.is_dir():
        raise InputError(f"shards:{folder}: there is no such folder")
    opened = _open({split: _files(folder, split) for split in SPLITS}, vocabulary, bare=False)
    if not opened.streams[0].tokens:
        raise InputError(f"{folder} holds neither {MANIFEST_NAME} nor a file *_train_*.bin with tokens")
    return opened


def open_nanogpt(file: Path, vocabulary: Vocabulary) -> Published:
    """Open nanoGPT's ``train.bin``, and ``val.bin`` beside it.

    Args:
        file: Tokens as little-endian uint16 and nothing else; of another name, it has no held-out split.

    Raises:
        InputError: If it is no such file, or empty.
    """
    beside = file.with_name(NANOGPT_VAL)
    held = [beside] if file.name == NANOGPT_TRAIN and beside.exists() else []
    opened = _open(dict(zip(SPLITS, ([file], held), strict=True)), vocabulary, bare=True)
    if not opened.streams[0].tokens:
        raise InputError(f"{file} holds no tokens")
    return opened


def _files(folder: Path, split: str) -> list[Path]:
    """The shards of a split, in the order of their names."""
    files = sorted(folder.glob("*.bin"), key=lambda path: path.name)
    for file in files:
        if all(_names(file, split) for split in SPLITS):
            raise InputError(f"{file} is named for both splits, {' and '.join(SPLITS)}; rename it")
    return [file for file in files if _names(file, split)]


def _names(file: Path, split: str) -> bool:
    """Whether a split is a word of the name: ``medieval_train_1.bin`` is of ``train``, and not of ``val``."""
    return split in re.split("[-_.]", file.name)


def _open(files: dict[str, list[Path]], vocabulary: Vocabulary, *, bare: bool) -> Published:
    train, val = (_stream(split, paths, vocabulary, bare=bare) for split, paths in files.items())
    digest = hashlib.sha256(f"{vocabulary.size} {vocabulary.end_of_text}".encode())
    for split, paths in files.items():
        for path in paths:
            _digest_edges(digest, split, path)
    return Published((train, val), vocabulary, digest.hexdigest())


def _stream(split: str, paths: Sequence[Path], vocabulary: Vocabulary, *, bare: bool) -> TokenStream:
    shards = [Shard(path, bare=bare) for path in paths]
    return TokenStream(split, shards, vocab_size=vocabulary.size, end_of_text=vocabulary.end_of_text)


def _digest_edges(digest: "hashlib._Hash", split: str, path: Path) -> None:
    with os.fdopen(open_regular(path, follow_link=True), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(f"{split} {path.name} {size}".encode())
        digest.update(file.read(HEADER_BYTES + EDGE_BYTES))
        file.seek(max(0, size - EDGE_BYTES))
        digest.update(file.read())
