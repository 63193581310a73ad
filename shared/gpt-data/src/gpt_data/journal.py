"""How far a preparation has come: the one file that a later process goes on from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError, shown
from gpt_data.manifest import SPLITS, parse_shard
from gpt_data.store.reading import read_bytes
from gpt_data.store.strict_json import check_seal, parse_object, seal
from gpt_data.store.writing import write_atomic
from gpt_data.writer import SplitState

JOURNAL_NAME = "progress.json"
MAX_JOURNAL_BYTES = 2**24
JOURNAL_VERSION = 2
"""Journals of version 1 do not vouch for themselves."""


@dataclass(frozen=True)
class Journal:
    """What is safe on the disk.

    Attributes:
        plan: What was asked for.
        pin: The source's version.
        tokenizer_sha256: Hash of ``tokenizer.json``.
        next_document: Number in the source of the first document that is not yet written.
        splits: State of each split's writer.
    """

    plan: dict[str, Any]
    pin: dict[str, str]
    tokenizer_sha256: str
    next_document: int
    splits: dict[str, SplitState]

    def save(self, folder: Path) -> None:
        """Write the journal into ``folder``, as a whole or not at all."""
        content = {"version": JOURNAL_VERSION, **asdict(self)}
        write_atomic(folder / JOURNAL_NAME, json.dumps(seal(content)).encode())


def load_journal(folder: Path) -> Journal | None:
    """The journal in ``folder``, or None if there is none.

    Raises:
        InputError: If it is damaged or of another version.
    """
    path = folder / JOURNAL_NAME
    if not path.exists():
        return None
    content = parse_object(read_bytes(path, MAX_JOURNAL_BYTES), path)
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= JOURNAL_VERSION:
        raise InputError(f"{path} has version {shown(version)}; this program reads up to {JOURNAL_VERSION}")
    if version > 1:
        check_seal(content, path)
    try:
        return Journal(
            plan=dict(content["plan"]),
            pin=dict(content["pin"]),
            tokenizer_sha256=str(content["tokenizer_sha256"]),
            next_document=int(content["next_document"]),
            splits={split: _parse_state(content["splits"][split]) for split in SPLITS},
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {type(error).__name__} {error}") from error


def _parse_state(content: dict[str, Any]) -> SplitState:
    shards = tuple(parse_shard(shard) for shard in content["shards"])
    return SplitState(shards, int(content["tokens"]), int(content["documents"]))
