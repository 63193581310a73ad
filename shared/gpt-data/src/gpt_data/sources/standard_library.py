"""The source text of the running Python's own standard library: a corpus on every machine."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError
from gpt_data.parts import Part
from gpt_data.sources.base import Document, Source

HELD_OUT_EVERY = 50
FOREIGN = frozenset({"site-packages", "dist-packages", "__pycache__"})
# Not code as people write it: code pages and help topics made by programs, and tests, half of whose text
# is odd literals. A small model learns these first and samples little else.
UNTYPICAL = frozenset({"encodings", "pydoc_data", "test", "tests", "idle_test"})
TABLES = frozenset({"html/entities.py", "locale.py"})


class StandardLibrary(Source):
    """Every ``*.py`` file that is UTF-8, one document each, in the order of relative paths.

    Tests are left out, and what is mostly tables: ``encodings``, ``pydoc_data`` and two modules.

    About one file in fifty is held out, chosen by a hash of its relative path, so that a file stays
    on its side whatever else is installed.

    Args:
        root: The library's folder; the running Python's if None.
        part: The part of the files that is read.

    Raises:
        InputError: If there are no files.
    """

    def __init__(self, max_document_bytes: int, root: Path | None = None, part: Part | None = None) -> None:
        self.root = root if root is not None else Path(sysconfig.get_paths()["stdlib"])
        sizes = {name: (self.root / name).stat().st_size for name in _walk(self.root)}
        self.sizes = {name: sizes[name] for name in sorted(sizes) if sizes[name] <= max_document_bytes}
        if not self.sizes:
            raise InputError(f"source stdlib: no *.py files under {self.root}")
        self.names = list(self.sizes) if part is None else part.of([*self.sizes])
        self.total_bytes = sum(self.sizes[name] for name in self.names)

    def identity(self) -> dict[str, Any]:
        """Python's version and the files' names and sizes."""
        listing = hashlib.sha256(json.dumps(self.sizes).encode()).hexdigest()
        return {"source": "stdlib", "python": platform.python_version(), "files": listing}

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The files from number ``start`` on; one that is not UTF-8 comes as an empty text."""
        for name in self.names[start:]:
            yield Document(split_of(name), self._read(name))

    def sample(self) -> Iterator[str]:
        """Training files in an order without meaning, so that the first few stand for all."""
        names = sorted(self.sizes, key=_hash)
        return (self._read(name) for name in names if split_of(name) == "train")

    def _read(self, name: str) -> str:
        try:
            return (self.root / name).read_bytes().decode()
        except UnicodeDecodeError:
            return ""
        except OSError as error:
            raise InputError(f"cannot read {self.root / name}: {error.strerror}") from error


def split_of(name: str) -> str:
    """The split of a file, by a stable hash of its relative path."""
    return "val" if _hash(name) % HELD_OUT_EVERY == 0 else "train"


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _walk(root: Path) -> Iterator[str]:
    # pruned rather than filtered: site-packages may hold a hundred times more files than the library
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in FOREIGN | UNTYPICAL]
        place = Path(folder).relative_to(root)
        paths = ((place / name).as_posix() for name in names if name.endswith(".py"))
        yield from (path for path in paths if path not in TABLES)
