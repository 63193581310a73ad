"""Text files and folders of them: .txt, .md and .jsonl, plain or compressed by .bz2, .gz, .xz or .zst.

A .txt or .md file is one document, and so is each line of a .jsonl file (its field ``text``). Files
of a folder that are named ``val``, ``valid`` or ``validation`` (with any extension) are the held-out
split; if there are none, the second of every fifty documents is, or the last twentieth of a lone document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gpt_data.errors import DataError
from gpt_data.sources.base import TOO_LONG_ADVICE, Document, check_document, hold_out, too_long
from gpt_data.store.json_lines import BOM, read_json_lines, text_field
from gpt_data.store.reading import COMPRESSIONS, open_unpacked

HELD_OUT_EVERY = 50
TEXT_KINDS = (".txt", ".md")
LINE_KINDS = (".jsonl",)
VALIDATION_NAME = re.compile(r"val(id(ation)?)?([-_.]\d+)*")


class TextFiles:
    """The documents of a file or of a folder, in the order of relative paths.

    Args:
        path: A file, or a folder that is searched with its subfolders.
        max_document_bytes: Largest document; a longer one is an error.

    Raises:
        DataError: If there is nothing to read.
    """

    def __init__(self, path: Path, max_document_bytes: int) -> None:
        self.root = path
        self.limit = max_document_bytes
        self.files = find_files(path)
        # a file that is asked for by its own name is wanted, whatever the name
        self.val = [file for file in self.files if file != path and is_validation(file)]
        self.train = [file for file in self.files if file not in self.val]
        if not self.train:
            raise DataError(f"source text:{path} holds only validation files")
        sizes = [file.stat().st_size for file in self.files]
        packed = any(file.suffix in COMPRESSIONS for file in self.files)
        self.total_bytes: int | None = None if packed else sum(sizes)

    def identity(self) -> dict[str, Any]:
        """The files' names, sizes and times."""
        stats = {str(file): file.stat() for file in self.files}
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
        return {"source": f"text:{self.root.resolve()}", "files": files}

    def pin(self) -> dict[str, str]:
        """Nothing: the files are at hand."""
        return {}

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number ``start`` on; held-out files come first."""
        if not self.val:
            return hold_out(lambda at: self._texts(self.train, at), start, HELD_OUT_EVERY)
        held = (Document("val", text) for text in self._texts(self.val))
        rest = (Document("train", text) for text in self._texts(self.train))
        return islice(chain(held, rest), start, None)

    def sample(self) -> Iterator[str]:
        """The training documents in order."""
        return (document.text for document in self.documents() if document.split == "train")

    def _texts(self, files: list[Path], start: int = 0) -> Iterator[str]:
        return islice(chain.from_iterable(read_documents(file, self.limit) for file in files), start, None)


def find_files(path: Path) -> list[Path]:
    """Readable files at or under ``path``, hidden ones left out, in the order of relative paths.

    Raises:
        DataError: If ``path`` is missing or there is no file of a known kind.
    """
    if path.is_file():
        if kind_of(path) is None:
            raise DataError(f"{path} is none of {', '.join(TEXT_KINDS + LINE_KINDS)}, compressed or not")
        return [path]
    if not path.is_dir():
        raise DataError(f"no file or folder {path}")
    files = [file for file in path.rglob("*") if file.is_file() and kind_of(file) is not None]
    visible = {file.relative_to(path).as_posix(): file for file in files}
    found = [visible[name] for name in sorted(visible) if not f"/{name}".count("/.")]
    if not found:
        raise DataError(f"{path} holds no file of {', '.join(TEXT_KINDS + LINE_KINDS)}")
    return found


def kind_of(path: Path) -> str | None:
    """The text kind of a file by its name, compression apart; None if it is no text.

    >>> kind_of(Path("a/b.jsonl.gz"))
    '.jsonl'
    """
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSIONS else path.suffix
    return suffix if suffix in TEXT_KINDS + LINE_KINDS else None


def is_validation(path: Path) -> bool:
    """Whether a file is held out by its name.

    >>> [is_validation(Path(name)) for name in ("val.txt", "validation-00000.jsonl.gz", "value.txt")]
    [True, True, False]
    """
    stem = path.stem if path.suffix in COMPRESSIONS else path.name
    return VALIDATION_NAME.fullmatch(Path(stem).stem) is not None


def read_documents(path: Path, limit: int) -> Iterator[str]:
    """The documents of one file.

    Args:
        path: The file.
        limit: Largest document in bytes; no more than that is ever held.

    Raises:
        DataError: If the file cannot be read or decoded, or a document is too long.
    """
    if kind_of(path) in LINE_KINDS:
        for where, record in read_json_lines(path, limit, advice=TOO_LONG_ADVICE):
            yield check_document(text_field(record, where), where, limit)
        return
    with open_unpacked(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise too_long(str(path), limit)
    yield _decode(content, str(path))


def _decode(content: bytes, where: str) -> str:
    try:
        return content.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 at byte {error.start}") from error
