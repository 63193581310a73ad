"""The safetensors format: eight bytes of header length, a JSON header, then the tensors' bytes.

Written without a copy of the weights and read with limits of our own, so that a hostile file costs no
more memory than its size. Only names that the caller asks for are given memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpt_data.errors import naming, shown
from gpt_data.store.reading import FileRecord, RegularFile
from gpt_data.store.strict_json import parse_object
from gpt_data.store.writing import write_file

from gpt_trainer.errors import InputError
from gpt_trainer.parameters import Parameters

HEADER_LIMIT = 1 << 20
"""Longest header in bytes; the optimizer of gpt2-1.5b (1,160 tensors) needs 150 kB."""
TENSOR_LIMIT = 10_000
NAME_LIMIT = 256
RANK_LIMIT = 8
ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
ITEM_BYTES |= {"F32": 4, "I32": 4, "U32": 4, "F64": 8, "I64": 8, "U64": 8}
STORED = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "BF16": "<u2", "U8": "u1", "BOOL": "u1"}
"""NumPy's type for the bytes of each element type that can be read."""
FLOAT_DTYPES = ("F32", "F64", "F16", "BF16")


class TensorEntry(NamedTuple):
    """Where a tensor lies in its file.

    Attributes:
        dtype: The format's name of the element type.
        shape: Sizes of the axes.
        begin: First byte, counted from the end of the header.
        end: One past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def _header(tensors: Mapping[str, np.ndarray]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, value in tensors.items():
        end = begin + 4 * value.size
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    # eight-byte alignment lets a reader map the tensors in place
    return text + b" " * (-len(text) % 8)


def _blocks(tensors: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    header = _header(tensors)
    yield len(header).to_bytes(8, "little") + header
    for value in tensors.values():
        yield np.ascontiguousarray(value, "<f4").data.cast("B")


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray]) -> FileRecord:
    """Write float32 arrays as one safetensors file, flushed to disk.

    Args:
        path: Where; it must not exist.
        tensors: Name -> float32 array with at least one element, written in this order.

    Raises:
        OSError: As the system reports it.
    """
    return write_file(path, _blocks(tensors))


def _natural(value: object, what: str) -> int:
    # bool is an int in Python, but true is not a length
    if type(value) is not int or value < 0:
        raise ValueError(f"{what} {shown(value)} is not a natural number")
    return value


def _entry(name: str, raw: object) -> TensorEntry:
    if not 0 < len(name) <= NAME_LIMIT:
        raise ValueError(f"the name has {len(name)} characters, expected 1 to {NAME_LIMIT}")
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"dtype {shown(dtype)} is not one of {', '.join(ITEM_BYTES)}")
    if not isinstance(shape, list) or len(shape) > RANK_LIMIT:
        raise ValueError(f"shape {shown(shape)} is not a list of at most {RANK_LIMIT} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2:
        raise ValueError(f"data_offsets {shown(offsets)} is not a pair")
    sizes = tuple(_natural(size, "size") for size in shape)
    begin, end = (_natural(offset, "offset") for offset in offsets)
    if end - begin != math.prod(sizes) * ITEM_BYTES[dtype]:
        raise ValueError(f"shape {shown(shape)} of {dtype} does not fill data_offsets {shown(offsets)}")
    return TensorEntry(dtype, sizes, begin, end)


def _check_metadata(raw: object) -> None:
    if not isinstance(raw, dict) or not all(isinstance(value, str) for value in raw.values()):
        raise ValueError("expected an object of strings")


def parse_header(raw: bytes, payload: int, path: Path) -> dict[str, TensorEntry]:
    """The tensors of a file in the order of their bytes, which must fill it without gap or overlap.

    Args:
        payload: Number of bytes that follow it.

    Raises:
        InputError: If anything about the header is not as the format demands.
    """
    header = parse_object(raw, path)
    if raw[:1] != b"{":
        raise InputError(f"{path}: the header does not begin with an opening brace")
    if len(header) > TENSOR_LIMIT:
        raise InputError(f"{path}: {len(header)} tensors, at most {TENSOR_LIMIT} are accepted")
    entries: dict[str, TensorEntry] = {}
    for name, value in header.items():
        with naming(f"{path}: {shown(name)}"):
            if name == "__metadata__":
                _check_metadata(value)
            else:
                entries[name] = _entry(name, value)
    _check_layout(entries, payload, path)
    return dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))


def _check_layout(entries: Mapping[str, TensorEntry], payload: int, path: Path) -> None:
    cursor = 0
    for begin, end, name in sorted((entry.begin, entry.end, name) for name, entry in entries.items()):
        if begin != cursor:
            fault = "leaves a gap" if begin > cursor else "overlaps the one before"
            raise InputError(f"{path}: {shown(name)} begins at byte {begin} and {fault}")
        cursor = end
    if cursor != payload:
        raise InputError(f"{path}: the tensors end at byte {cursor} of {payload}")


class TensorFile:
    """One safetensors file: its header first, then what the caller wants of its tensors."""

    def __init__(self, path: Path, record: FileRecord | None = None, *, follow_link: bool = False) -> None:
        """Open the file and parse its header.

        Args:
            record: Size and digest that it must have, if known.
            follow_link: Whether a symbolic link is followed; refused otherwise.

        Raises:
            InputError: If the file or its header is not acceptable.
        """
        self._file = RegularFile(path, record, follow_link=follow_link)
        try:
            self.entries = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def _read_header(self) -> dict[str, TensorEntry]:
        path, size = self._file.path, self._file.size
        if size < 10:
            raise InputError(f"{path} has {size} bytes: too short for a safetensors file")
        length = int.from_bytes(self._file.read(8), "little")
        if length > min(HEADER_LIMIT, size - 8):
            raise InputError(f"{path}: header of {length} bytes in a file of {size}, limit {HEADER_LIMIT}")
        return parse_header(self._file.read(length), size - 8 - length, path)

    def read(self, names: Collection[str]) -> Parameters:
        """The named tensors as float32; the whole file is read and held to its record.

        Args:
            names: Names from ``entries``, each with a dtype of ``STORED``. A float64 beyond the range of
                float32 becomes infinity.

        Raises:
            InputError: If the file ends too early or is not the recorded one.
        """
        values: Parameters = {}
        for name, entry in self.entries.items():
            if name in names:
                values[name] = self._read_tensor(entry)
            else:
                self._file.skip(entry.end - entry.begin)
        self._file.finish()
        return values

    def _read_tensor(self, entry: TensorEntry) -> np.ndarray:
        value = np.empty(entry.shape, STORED[entry.dtype])
        if value.size:
            self._file.read_into(value.reshape(-1).data.cast("B"))
        if entry.dtype == "BF16":
            # bfloat16 is the upper half of a float32
            return (value.astype(np.uint32) << np.uint32(16)).view(np.float32)
        with np.errstate(over="ignore"):
            return value.astype(np.float32, copy=False)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
