"""Whether a folder holds what its manifest says; what was found good is not looked through again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError, WriteError
from gpt_data.manifest import TOKENIZER_NAME, Manifest, NamedFile
from gpt_data.store.reading import RegularFile, open_regular, read_bytes
from gpt_data.store.writing import write_atomic
from gpt_data.tokenizers import load_tokenizer

VERIFIED_NAME = ".verified.json"
VOCABULARY = "vocabulary"
MAX_STAMPS_BYTES = 2**24
REMEDY = "remove the folder and prepare it again"


def verify(folder: Path, manifest: Manifest) -> None:
    """Hold each file to its record, and the vocabulary to the tokenizer.

    Sizes are looked at every time. A file is hashed once for as long as its inode, size and time stay the
    same, the vocabulary compared once for a tokenizer.

    Raises:
        InputError: Naming the first file that is missing, damaged or does not fit.
    """
    known = _load_stamps(folder)
    fresh: dict[str, Any] = {file.name: _stamp(folder / file.name, file) for file in manifest.files()}
    for file in manifest.files():
        if known.get(file.name) != fresh[file.name]:
            _check_content(folder / file.name, file)
    fresh[VOCABULARY] = [manifest.vocab_size, manifest.end_of_text, manifest.tokenizer.sha256]
    if known.get(VOCABULARY) != fresh[VOCABULARY]:
        _check_vocabulary(folder, manifest)
    if fresh != known:
        _save_stamps(folder, fresh)


def _stamp(path: Path, file: NamedFile) -> list[Any]:
    handle = open_regular(path, follow_link=True)
    try:
        status = os.fstat(handle)
    finally:
        os.close(handle)
    if status.st_size != file.bytes:
        raise InputError(f"{path} has {status.st_size} bytes; the manifest says {file.bytes}; {REMEDY}")
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, file.sha256]


def _check_content(path: Path, file: NamedFile) -> None:
    with RegularFile(path, file.record, follow_link=True) as opened:
        opened.skip(opened.size)
        opened.finish()


def _check_vocabulary(folder: Path, manifest: Manifest) -> None:
    tokenizer = load_tokenizer(folder / TOKENIZER_NAME)
    for name, says, has in (
        ("vocab_size", manifest.vocab_size, tokenizer.vocab_size),
        ("end_of_text", manifest.end_of_text, tokenizer.end_of_text),
    ):
        if says != has:
            raise InputError(
                f"{folder}: the manifest says {name} {says}, {TOKENIZER_NAME} has {has}; {REMEDY}"
            )


def _load_stamps(folder: Path) -> dict[str, Any]:
    try:
        stamps = json.loads(read_bytes(folder / VERIFIED_NAME, MAX_STAMPS_BYTES, follow_link=True))
    except (ValueError, RecursionError):
        return {}
    return stamps if isinstance(stamps, dict) else {}


def _save_stamps(folder: Path, stamps: dict[str, Any]) -> None:
    try:
        write_atomic(folder / VERIFIED_NAME, json.dumps(stamps).encode())
    except WriteError:
        return  # a read-only folder is verified again next time
