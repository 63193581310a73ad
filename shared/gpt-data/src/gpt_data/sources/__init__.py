"""Where text comes from: one small class for each kind of source, found by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from gpt_data.errors import InputError
from gpt_data.parts import Part
from gpt_data.sources.base import Document, Source
from gpt_data.sources.hub import HELD_OUT_EVERY as HUB_CYCLE
from gpt_data.sources.hub import NAMED, HubDataset, HubName, parse_hub_name
from gpt_data.sources.standard_library import StandardLibrary
from gpt_data.sources.text_files import TextFiles

__all__ = ["KINDS", "Document", "Source", "open_source"]

KINDS = ("stdlib", "text:PATH", "hf:NAME[:CONFIG[:SPLIT]]", *NAMED, "shards:DIR", "nanogpt:FILE")
"""What may be asked for, alone or in a mixture; the last two are opened as they are and have no text."""


def open_source(
    spec: str,
    max_document_bytes: int,
    *,
    part: Part | None = None,
    pin: Mapping[str, str] | None = None,
    on_notice: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Source:
    """The source that ``spec`` names.

    Args:
        part: The part that is read; all of it if None.
        should_stop: Asked while waiting for a retry; True gives up.

    Raises:
        InputError: If there is no such source, or nothing in it.
    """
    kind, _, rest = spec.partition(":")
    if spec == "stdlib":
        return StandardLibrary(max_document_bytes, part=part)
    if kind == "text" and rest:
        return TextFiles(Path(rest), max_document_bytes, part=part)
    if spec in NAMED or (kind == "hf" and rest):
        name = NAMED[spec] if spec in NAMED else parse_hub_name(rest)
        if Path(name.dataset).is_dir():
            return _local(name, max_document_bytes, part)
        return HubDataset(
            name, max_document_bytes, part=part, pin=pin, on_notice=on_notice, should_stop=should_stop
        )
    if Path(spec).exists():
        raise InputError(f"unknown source {spec!r}: perhaps you meant {_kind_of(Path(spec))}:{spec}")
    raise InputError(f"unknown source {spec!r}; choose one of {', '.join(KINDS)}")


def _kind_of(path: Path) -> str:
    """What a path that was given without a kind seems to be."""
    if path.suffix == ".bin":
        return "nanogpt"
    return "shards" if path.is_dir() and any(path.glob("*.bin")) else "text"


def _local(name: HubName, max_document_bytes: int, part: Part | None) -> Source:
    """A folder of the kind that the hub holds: no stream that would get better by waiting."""
    if name.config is not None:
        raise InputError(f"source hf:{name.dataset}: a folder has no configuration {name.config!r}")
    return TextFiles(Path(name.dataset), max_document_bytes, name.split, every=HUB_CYCLE, part=part)
