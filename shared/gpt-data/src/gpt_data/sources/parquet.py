"""The texts of a .parquet file, read a few pages at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from gpt_data.errors import InputError, first_line, listed
from gpt_data.store.json_lines import text_field
from gpt_data.store.reading import open_regular

BATCH_ROWS = 256
BUFFER_BYTES = 2**20


def read_texts(path: Path, field: str = "text") -> Iterator[tuple[str, str]]:
    """The strings of one column, each with its place.

    Yields:
        Where it stands (``PATH row N``, from 1), and the string.

    Raises:
        InputError: If the file cannot be read, or the column is missing or holds something else.
    """
    with os.fdopen(open_regular(path, follow_link=True), "rb") as file:
        for number, value in enumerate(chain.from_iterable(_batches(path, file, field)), 1):
            where = f"{path} row {number}"
            yield where, text_field({field: value}, where, field)


def _batches(path: Path, file: Any, field: str) -> Iterator[list[object]]:
    parquet = _library(path)
    # ArrowInvalid and the failure to decode a text are ValueErrors, ArrowNotImplementedError is not
    arrow_errors = (import_module("pyarrow").ArrowException, ValueError, OSError)
    try:
        # pages as they are needed, not all of a row group, which may be the whole file
        opened = parquet.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        names = opened.schema_arrow.names
        if field not in names:
            raise InputError(f"{path} has no column {field!r}; it has {listed(names)}")
        for batch in opened.iter_batches(BATCH_ROWS, columns=[field], use_threads=False):
            yield batch.column(0).to_pylist()
    except InputError:
        raise
    except arrow_errors as error:
        raise InputError(f"cannot read {path}: {first_line(error)}") from error


def _library(path: Path) -> Any:
    with suppress(ImportError):
        return import_module("pyarrow.parquet")
    raise InputError(f"{path} needs the extra gpt-data[parquet]")
