"""A source in parts, prepared on several machines perhaps, a folder each; and such folders as one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gpt_data.errors import InputError, shown
from gpt_data.journal import JOURNAL_NAME
from gpt_data.manifest import MANIFEST_NAME, Manifest

Item = TypeVar("Item")


@dataclass(frozen=True, order=True)
class Part:
    """Which part of how many, from 1."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every ``count``-th of the items."""
        return list(items[self.index - 1 :: self.count])


def parse_part(text: object) -> Part:
    """``3/16`` as a part.

    Raises:
        InputError: If it is none.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text) if isinstance(text, str) else None
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"part {shown(text)} is none of 1/N to N/N, as in 3/16")
    return Part(int(found[1]), int(found[2]))


def part_folders(folder: Path) -> list[Path]:
    """The folders in ``folder`` that are prepared, or being so."""
    if not folder.is_dir():
        return []
    inside = sorted(path for path in folder.iterdir() if path.is_dir())
    return [path for path in inside if any((path / name).exists() for name in (MANIFEST_NAME, JOURNAL_NAME))]


def in_order(folder: Path, manifests: Mapping[Path, Manifest]) -> list[Path]:
    """The folders of parts in the order of the parts, which are all of one source, each there once.

    Raises:
        InputError: Naming the first that is missing, there twice, or of something else.
    """
    found: dict[Part, Path] = {}
    (first, model), *_ = manifests.items()
    for path, manifest in manifests.items():
        if "part" not in manifest.plan:
            raise InputError(
                f"{path} is a whole, and no part; give --data {shlex.quote(f'shards:{path}')}, or take it out"
            )
        part = parse_part(manifest.plan["part"])
        if part in found:
            raise InputError(f"{found[part]} and {path} are both part {part}")
        found[part] = path
        wanted, here = _identity(model), _identity(manifest)
        for name in sorted(wanted.keys() | here.keys()):
            one, other = wanted.get(name), here.get(name)
            if one != other:
                there = f"{shown(other)}, there {shown(one)}"
                raise InputError(f"{path} has another {name} than {first}: {there}")
    count = next(iter(found)).count
    missing = [str(part) for i in range(count) if (part := Part(i + 1, count)) not in found]
    if missing:
        there = ", ".join(map(str, sorted(found)))
        raise InputError(f"{folder} holds parts {there}; parts {', '.join(missing[:10])} are missing")
    return [found[part] for part in sorted(found)]


def _identity(manifest: Manifest) -> dict[str, object]:
    """What all parts of a source have in common."""
    count = parse_part(manifest.plan.get("part")).count
    return {**manifest.plan, "part": f"of {count}", "tokenizer": manifest.tokenizer.sha256}
