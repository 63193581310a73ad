"""What of a folder is text, by the names of its files; what is left out is counted."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bpe_scratch.unpacking import COMPRESSIONS

from gpt_data.errors import InputError

TEXT_KINDS = (".txt", ".text", ".md")
PARQUET = ".parquet"
KINDS = (*TEXT_KINDS, ".jsonl", PARQUET)
SPLITS = {
    "validation": re.compile(r"val(id(ation)?)?([-_.](\d+|of))*"),
    "test": re.compile(r"test([-_.](\d+|of))*"),
}
HIDDEN, LINKED, DEAD, OTHER = "hidden", "links to folders", "links to nothing", "of other kinds"


def find_files(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Files of text at or under ``path`` in the order of relative paths, and a note of what is left out.

    Args:
        path: A file or a folder. Links to files are followed, links to folders are not, as they may lead
            back.

    Raises:
        InputError: If ``path`` is missing or unreadable, or there is no file of a known kind.
    """
    if path.is_file():
        if kind_of(path) is None:
            raise InputError(f"{path} is none of {', '.join(KINDS)}, compressed or not")
        return [path], ()
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder")
    found: dict[str, Path] = {}
    left_out: Counter[str] = Counter()
    for file, reason in _walk(path):
        if reason is None:
            found[file.relative_to(path).as_posix()] = file
        else:
            left_out[reason] += 1
    counts = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    if not found:
        raise InputError(
            f"{path} holds no file of {', '.join(KINDS)}" + (f", but {counts}" if counts else "")
        )
    notes = (f"{path}: {len(found)} files are read, left out are {counts}",) if counts else ()
    return [found[name] for name in sorted(found)], notes


def _walk(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Everything under a folder, with the reason for which it is left out."""
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        place = Path(folder)
        for name in subfolders:
            reason = HIDDEN if name.startswith(".") else LINKED if (place / name).is_symlink() else None
            if reason is not None:
                yield place / name, reason
        # what is hidden is one thing, however much it holds
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        yield from ((place / name, _reason(place / name)) for name in names)


def _reason(file: Path) -> str | None:
    if file.name.startswith("."):
        return HIDDEN
    if not file.exists():
        return DEAD
    return None if kind_of(file) is not None and file.is_file() else OTHER


def _refuse(error: OSError) -> None:
    raise InputError(f"cannot read {error.filename}: {error.strerror}") from error


def is_compressed(path: Path) -> bool:
    """Whether a file's size says nothing about the text in it."""
    return path.suffix in COMPRESSIONS or kind_of(path) == PARQUET


def kind_of(path: Path) -> str | None:
    """The text kind of a file by its name, compression and case apart; None if it is no text.

    >>> kind_of(Path("a/b.jsonl.gz")), kind_of(Path("A.TXT"))
    ('.jsonl', '.txt')
    """
    packed = path.suffix in COMPRESSIONS
    suffix = (Path(path.stem).suffix if packed else path.suffix).lower()
    return suffix if suffix in KINDS and not (packed and suffix == PARQUET) else None


def split_of(path: Path) -> str:
    """The split of a file by its name, or by that of a folder that it lies in.

    >>> [split_of(Path(name)) for name in ("val.txt", "data/validation-00000-of-00001.jsonl.gz", "test/a.md")]
    ['validation', 'validation', 'test']
    >>> split_of(Path("value.txt"))
    'train'
    """
    stem = path.stem if path.suffix in COMPRESSIONS else path.name
    parts = (*path.parts[:-1], Path(stem).stem)
    for split, pattern in SPLITS.items():
        if any(pattern.fullmatch(part) for part in parts):
            return split
    return "train"
