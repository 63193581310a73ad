"""``manifest.json``: what a step consists of. It is written last, and a step without it is no step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.errors import naming, shown
from gpt_data.store.reading import FileRecord, read_bytes
from gpt_data.store.strict_json import parse_object

from gpt_trainer.errors import InputError

FORMAT = "gpt-trainer checkpoint"
VERSION = 2
MANIFEST = "manifest.json"
MODEL = "model.safetensors"
CONFIG = "config.json"
OPTIMIZER = "optimizer.safetensors"
TRAINER = "trainer.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
REQUIRED = (CONFIG, MODEL, OPTIMIZER, TRAINER)
MANIFEST_LIMIT = 1 << 16
STEP_NAME = re.compile(r"step-(\d{8,})", re.ASCII)


class ForeignError(InputError):
    """A checkpoint that is whole, but of another kind of model: no other step of its run is any better."""


class NewerFormatError(ForeignError):
    """A checkpoint of a later version of this program: whole, but not readable here."""


class Manifest(NamedTuple):
    """What a step consists of.

    Attributes:
        step: Optimizer steps taken.
        files: Size and digest of each file by name.
        version: Of the format; steps of version 1 say nothing to ``transformers`` of their tokenizer.
    """

    step: int
    files: dict[str, FileRecord]
    version: int = VERSION


def step_name(step: int) -> str:
    """Name of a step's folder: ``step_name(100)`` is ``step-00000100``."""
    return f"step-{step:08d}"


def parse_step_name(name: str) -> int | None:
    """The step that a folder's name stands for, or ``None`` if it is not such a name."""
    match = STEP_NAME.fullmatch(name)
    return int(match[1]) if match and step_name(int(match[1])) == name else None


def manifest_to_json(manifest: Manifest) -> bytes:
    """The content of ``manifest.json``, the same bytes for the same manifest."""
    values = {
        "format": FORMAT,
        "version": manifest.version,
        "step": manifest.step,
        "files": {name: record._asdict() for name, record in sorted(manifest.files.items())},
    }
    return json.dumps(values, indent=2).encode() + b"\n"


def _parse_record(name: str, raw: object) -> FileRecord:
    if not isinstance(raw, dict) or raw.keys() != {"size", "sha256"}:
        raise ValueError(f"{name}: expected exactly size and sha256")
    size, digest = raw["size"], raw["sha256"]
    if type(size) is not int or size < 0:
        raise ValueError(f"{name}: size is {shown(size)}")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{name}: sha256 is {shown(digest)}")
    return FileRecord(size, digest)


def _parse_files(raw: object, version: int) -> dict[str, FileRecord]:
    more = {TOKENIZER} if version == 1 else {TOKENIZER, TOKENIZER_CONFIG}
    if not isinstance(raw, dict) or raw.keys() not in (set(REQUIRED), more.union(REQUIRED)):
        names = shown(sorted(raw)) if isinstance(raw, dict) else shown(raw)
        perhaps = " and ".join(sorted(more))
        raise ValueError(f"files are {names}, expected {', '.join(REQUIRED)} and perhaps {perhaps}")
    return {name: _parse_record(name, record) for name, record in raw.items()}


def _version(values: Mapping[str, Any], path: Path) -> int:
    if values.get("format") != FORMAT:
        raise InputError(f"{path}: format is {shown(values.get('format'))}, expected {FORMAT!r}")
    version = values.get("version")
    if type(version) is not int or version < 1:
        raise InputError(f"{path}: version is {shown(version)}, expected 1 to {VERSION}")
    if version > VERSION:
        raise NewerFormatError(
            f"{path}: written in format version {version}, this program reads up to {VERSION}; update it"
        )
    return version


def read_manifest(folder: Path) -> Manifest:
    """Read a step's manifest; nothing else of the step is looked at.

    Raises:
        NewerFormatError: If a later version of the program wrote it.
        InputError: If it is missing or not exactly what this program writes.
    """
    path = folder / MANIFEST
    raw = read_bytes(path, MANIFEST_LIMIT)
    values = parse_object(raw, path)
    version = _version(values, path)
    step = values.get("step")
    if type(step) is not int or step < 0:
        raise InputError(f"{path}: step is {shown(step)}")
    with naming(path):
        manifest = Manifest(step, _parse_files(values.get("files"), version), version)
    named = parse_step_name(folder.name)
    if named is not None and named != step:
        raise InputError(f"{path}: written for step {step}, but the folder is that of step {named}")
    if manifest_to_json(manifest) != raw:
        raise InputError(f"{path}: holds something that was not written by this program")
    return manifest
