"""Text files and folders of them: .txt, .text, .md, .jsonl and .parquet, plain or compressed.

A .txt, .text or .md file is one document, and so is each line of a .jsonl file and each row of a .parquet
file (its field ``text``). Files of a folder that are named ``val``, ``valid`` or ``validation`` (with any
extension), or lie in a folder of that name, are the held-out split; if there are none, the second of every
fifty documents is, or the end of the text of fewer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError
from gpt_data.parts import Part
from gpt_data.sources.base import TOO_LONG_ADVICE, Document, HoldOut, Source, check_document, too_long
from gpt_data.sources.folder import PARQUET, TEXT_KINDS, find_files, is_compressed, kind_of, split_of
from gpt_data.sources.parquet import read_texts
from gpt_data.store.json_lines import BOM, is_blank, parse_record, read_lines, text_field
from gpt_data.store.unpacking import open_unpacked

HELD_OUT_EVERY = 50
MOST_BYTES = 4
"""Of a character in UTF-8."""
ESCAPE = re.compile(rb"\\u")
"""By which half a surrogate pair may come in; an expression finds it in a third of the time of ``in``."""


class TextFiles(Source):
    """The documents of a file or of a folder, in the order of relative paths.

    Args:
        max_document_bytes: Largest document; a longer one is an error.
        split: Train on the files of this split alone, by their names; on all but the held-out ones if None.
        part: The part of the files that is read, of those held out too.

    Raises:
        InputError: If there is nothing to read.
    """

    def __init__(
        self,
        path: Path,
        max_document_bytes: int,
        split: str | None = None,
        every: int = HELD_OUT_EVERY,
        part: Part | None = None,
    ) -> None:
        self.root = path
        self.limit = max_document_bytes
        files, self.notes = find_files(path)
        # a file that is asked for by its own name is wanted, whatever the name
        splits = {file: "train" if file == path else split_of(file.relative_to(path)) for file in files}
        self.val = [file for file in files if splits[file] == "validation" and split in (None, "train")]
        self.train = [
            file for file in files if splits[file] == split or (split is None and file not in self.val)
        ]
        if not self.train:
            raise InputError(f"{path} holds only files of other splits than {split or 'train'}")
        self.hold_out = HoldOut(lambda start: self._texts(self.train, start), every)
        self.files = [*self.val, *self.train]
        self.held_out = "files named validation" if self.val else self.hold_out.rule
        self.named = bool(self.val)
        if part is not None:
            if len(self.train) < part.count:
                raise InputError(f"{path} has {len(self.train)} files to train on, too few for part {part}")
            self.val, self.train = part.of(self.val), part.of(self.train)
        read = [*self.val, *self.train]
        sizes = [file.stat().st_size for file in read]
        packed = any(is_compressed(file) for file in read)
        self.total_bytes = None if packed else sum(sizes)

    def identity(self) -> dict[str, Any]:
        """The files' names, sizes and times, and what of them is held out."""
        # by their places in the folder, whatever way to it is typed
        stats = {os.path.relpath(file, self.root): file.stat() for file in sorted(self.files)}
        files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()]
        return {"source": f"text:{self.root.resolve()}", "files": files, "held_out": self.held_out}

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The documents from number ``start`` on; held-out files come first."""
        if not self.named:
            return self.hold_out.documents(start)
        held = (Document("val", text) for text in self._texts(self.val))
        rest = (Document("train", text) for text in self._texts(self.train))
        return islice(chain(held, rest), start, None)

    def _texts(self, files: list[Path], start: int = 0) -> Iterator[str]:
        return islice(chain.from_iterable(read_documents(file, self.limit) for file in files), start, None)


def read_documents(path: Path, limit: int) -> Iterator[str]:
    """The documents of one file.

    Args:
        limit: Largest document in bytes; no more than that is ever held.

    Raises:
        InputError: If the file cannot be read or decoded, or a document is too long.
    """
    kind = kind_of(path)
    if kind in TEXT_KINDS:
        yield _read_whole(path, limit)
    elif kind == PARQUET:
        for where, text in read_texts(path):
            yield text if MOST_BYTES * len(text) <= limit else check_document(text, where, limit)
    else:
        for where, line in read_lines(path, limit, advice=TOO_LONG_ADVICE):
            if not is_blank(line):
                text = text_field(parse_record(line, where), where)
                # half a surrogate pair comes in by an escape alone; and no text is longer than its line
                yield check_document(text, where, limit) if ESCAPE.search(line) else text


def _read_whole(path: Path, limit: int) -> str:
    with open_unpacked(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise too_long(str(path), limit)
    try:
        return content.removeprefix(BOM).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}") from error
