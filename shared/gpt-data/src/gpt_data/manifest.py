"""The manifest of a prepared folder: what it holds, and how to tell that it is all there.

It is written last, so that a folder with a manifest is a finished one. It vouches for itself too: its last
field is the sha256 of the others, and a manifest that is not what its own values are written as is refused.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError, shown
from gpt_data.store.reading import FileRecord, read_bytes
from gpt_data.store.strict_json import parse_object, seal
from gpt_data.store.writing import write_atomic

MANIFEST_NAME = "manifest.json"
TOKENIZER_NAME = "tokenizer.json"
MAX_TOKENIZER_BYTES = 256 * 2**20
"""As bpe-scratch reads at most: what can be prepared with can be saved with a model too."""
FORMAT_VERSION = 2
"""Manifests of version 1 have no ``sha256`` of their own."""
MAX_MANIFEST_BYTES = 16 * 2**20
SPLITS = ("train", "val")


@dataclass(frozen=True)
class NamedFile:
    """One file of the folder.

    Attributes:
        name: Its plain name.
        bytes: Its size.
        sha256: Hash of its content.
    """

    name: str
    bytes: int
    sha256: str

    @property
    def record(self) -> FileRecord:
        """What its content is held to."""
        return FileRecord(self.bytes, self.sha256)


@dataclass(frozen=True)
class ShardRecord:
    """One shard with its document offsets.

    Attributes:
        tokens: Tokens in the shard.
        documents: Documents that begin in it.
        data: The ``.bin`` file.
        offsets: The ``.docs`` file.
    """

    tokens: int
    documents: int
    data: NamedFile
    offsets: NamedFile


@dataclass(frozen=True)
class Manifest:
    """A finished folder.

    Attributes:
        plan: What was asked for: source, tokenizer and settings.
        vocab_size: Every token id is below this.
        end_of_text: The id that opens each document.
        tokenizer: The file ``tokenizer.json``.
        splits: Shards by split, in order.
        versions: Programs that made the folder.
    """

    plan: dict[str, Any]
    vocab_size: int
    end_of_text: int
    tokenizer: NamedFile
    splits: dict[str, tuple[ShardRecord, ...]]
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """sha256 over what decides the batches: tokens, offsets, vocabulary and tokenizer."""
        content = {
            "vocab_size": self.vocab_size,
            "end_of_text": self.end_of_text,
            "tokenizer": self.tokenizer.sha256,
            "splits": {
                split: [(shard.tokens, shard.data.sha256, shard.offsets.sha256) for shard in shards]
                for split, shards in self.splits.items()
            },
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def tokens(self, split: str) -> int:
        """Number of tokens of a split."""
        return sum(shard.tokens for shard in self.splits[split])

    def documents(self, split: str) -> int:
        """Number of documents of a split."""
        return sum(shard.documents for shard in self.splits[split])

    def files(self) -> list[NamedFile]:
        """Every file of the folder but the manifest itself."""
        shards = [shard for split in self.splits.values() for shard in split]
        return [self.tokenizer, *(file for shard in shards for file in (shard.data, shard.offsets))]

    def to_json(self, version: int = FORMAT_VERSION) -> bytes:
        """The content of ``manifest.json``, the same bytes for the same manifest."""
        counts = {s: {"tokens": self.tokens(s), "documents": self.documents(s)} for s in self.splits}
        content = {"format": "gpt-data", "version": version, "totals": counts, **asdict(self)}
        return (json.dumps(seal(content) if version > 1 else content, indent=1) + "\n").encode()

    def save(self, folder: Path) -> None:
        """Write ``manifest.json`` into ``folder``, as a whole or not at all."""
        write_atomic(folder / MANIFEST_NAME, self.to_json())


def load_manifest(folder: Path) -> Manifest:
    """Read ``manifest.json`` of ``folder``.

    Raises:
        InputError: If it is missing, damaged or of a newer version.
    """
    path = folder / MANIFEST_NAME
    raw = read_bytes(path, MAX_MANIFEST_BYTES, follow_link=True)
    content = parse_object(raw, path)
    if content.get("format") != "gpt-data":
        raise InputError(f"{path} is not a manifest of token shards")
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise InputError(f"{path} has version {shown(version)}; this program reads up to {FORMAT_VERSION}")
    try:
        manifest = _parse(content)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__} {error}") from error
    if manifest.to_json(version) != raw:
        raise InputError(f"{path} is damaged: its values are not those that it was written with")
    return manifest


def parse_shard(content: dict[str, Any]) -> ShardRecord:
    """A shard's record from its JSON form.

    Raises:
        KeyError: If a field is missing.
        TypeError: If a field has another type.
        ValueError: If a file's name is not a plain name.
    """
    data, offsets = (_parse_file(content[name]) for name in ("data", "offsets"))
    return ShardRecord(_count(content["tokens"]), _count(content["documents"]), data, offsets)


def _parse_file(content: dict[str, Any]) -> NamedFile:
    name, sha256 = content["name"], content["sha256"]
    if not isinstance(name, str) or not isinstance(sha256, str):
        raise TypeError(f"name {name!r} or sha256 {sha256!r} is not a string")
    # a name in a manifest is never a path: it must not lead out of the folder
    if Path(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} is not a plain file name")
    return NamedFile(name, _count(content["bytes"]), sha256)


def _parse(content: dict[str, Any]) -> Manifest:
    splits = {split: tuple(parse_shard(shard) for shard in content["splits"][split]) for split in SPLITS}
    if not isinstance(content["plan"], dict):
        raise TypeError("plan is not an object")
    return Manifest(
        plan=content["plan"],
        vocab_size=_count(content["vocab_size"]),
        end_of_text=_count(content["end_of_text"]),
        tokenizer=_parse_file(content["tokenizer"]),
        splits=splits,
        versions=dict(content["versions"]),
    )


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is not a count")
    return value
