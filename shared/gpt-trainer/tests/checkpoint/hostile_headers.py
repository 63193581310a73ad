"""Safetensors files made to harm, by name: ``HEADERS``."""

from __future__ import annotations

import json
import struct
from typing import Any

HEADER_LIMIT = 1 << 20


def entry(dtype: object = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def packed(header: bytes, payload: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + payload


def one(value: object, payload: bytes = b"\0" * 4, name: str = "a") -> bytes:
    return packed(json.dumps({name: value}).encode(), payload)


def two(first: tuple[int, int], second: tuple[int, int], payload: int) -> bytes:
    values = {
        name: entry(shape=[max(0, end - begin) // 4], offsets=[begin, end])
        for name, (begin, end) in {"a": first, "b": second}.items()
    }
    return packed(json.dumps(values).encode(), b"\0" * payload)


GOOD = json.dumps({"a": entry()}).encode()
EMPTY = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(10_001))
LONG = ",".join(f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(30_000))
HEADERS: dict[str, bytes] = {
    "empty-file": b"",
    "seven-bytes": b"\0" * 7,
    "eight-bytes": b"\0" * 8,
    "nine-bytes": packed(b"{"),
    "zero-length": packed(b"", b"{}      ", 0),
    "length-2-to-63": packed(GOOD, b"\0" * 4, 2**63),
    "length-2-to-64": packed(GOOD, b"\0" * 4, 2**64 - 1),
    "length-99999999": packed(GOOD, b"\0" * 4, 99_999_999),
    "length-past-the-end": packed(GOOD, b"", len(GOOD) + 1),
    "length-into-payload": packed(GOOD, b"\0" * 4, len(GOOD) + 2),
    "length-too-short": packed(GOOD, b"\0" * 4, len(GOOD) - 2),
    "header-over-the-cap": packed(b" " * (HEADER_LIMIT + 1) + GOOD),
    "header-of-20-megabytes": packed(b"{" + b" " * 20_000_000 + b"}"),
    "10001-tensors": packed(b"{" + EMPTY.encode() + b"}"),
    "30000-tensors": packed(b"{" + LONG.encode() + b"}"),
    "deep-lists": packed(b'{"a":' + b"[" * 500_000),
    "deep-closed-lists": packed(b'{"a":' + b"[" * 300_000 + b"]" * 300_000 + b"}"),
    "deep-objects": packed(b'{"a":' * 150_000),
    "deep-in-shape": packed(b'{"a":{"dtype":"F32","shape":' + b"[" * 100_000 + b"]" * 100_000 + b"}}"),
    "duplicate-name": packed(GOOD[:-1] + b"," + GOOD[1:], b"\0" * 4),
    "duplicate-field": packed(
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "duplicate-metadata": packed(b'{"__metadata__":{},"__metadata__":{},' + GOOD[1:], b"\0" * 4),
    "nan-literal": packed(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"\0" * 4),
    "infinity-literal": packed(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}', b"\0" * 4),
    "float-overflow": packed(b'{"a":{"dtype":"F32","shape":[1e999],"data_offsets":[0,4]}}', b"\0" * 4),
    "integer-of-5000-digits": packed(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}', b"\0" * 4
    ),
    "not-utf-8": packed(b'{"\xff\xfe": {}}'),
    "byte-order-mark": packed(b"\xef\xbb\xbf" + GOOD, b"\0" * 4),
    "utf-16": packed(GOOD.decode().encode("utf-16"), b"\0" * 4),
    "nul-in-json": packed(b'{"a\0b": {}}'),
    "leading-space": packed(b" " + GOOD, b"\0" * 4),
    "trailing-text": packed(GOOD + b"x", b"\0" * 4),
    "two-documents": packed(GOOD + GOOD, b"\0" * 4),
    "comment": packed(GOOD[:-1] + b"/**/}", b"\0" * 4),
    "list-at-the-top": packed(b"[1, 2, 3]"),
    "string-at-the-top": packed(b'"header"'),
    "null-at-the-top": packed(b"null  "),
    "number-at-the-top": packed(b"12345678"),
    "tensor-is-null": one(None),
    "tensor-is-a-list": one([]),
    "tensor-is-a-number": one(7),
    "no-dtype": one({"shape": [1], "data_offsets": [0, 4]}),
    "no-shape": one({"dtype": "F32", "data_offsets": [0, 4]}),
    "no-offsets": one({"dtype": "F32", "shape": [1]}),
    "extra-field": one(entry() | {"code": "import os"}),
    "unknown-dtype": one(entry("F99")),
    "dtype-object": one(entry("O")),
    "dtype-is-a-list": one(entry(["F32"])),
    "dtype-is-null": one(entry(None)),
    "dtype-lower-case": one(entry("f32")),
    "shape-is-a-number": one(entry(shape=1)),
    "shape-is-an-object": one(entry(shape={"0": 1})),
    "size-is-negative": one(entry(shape=[-1])),
    "sizes-negative-twice": one(entry(shape=[-1, -1])),
    "size-is-a-float": one(entry(shape=[1.0])),
    "size-is-true": one(entry(shape=[True])),
    "size-is-a-string": one(entry(shape=["1"])),
    "size-is-null": one(entry(shape=[None])),
    "size-wraps-64-bits": one(entry(shape=[2**62, 4], offsets=[0, 0]), b""),
    "size-wraps-32-bits": one(entry(shape=[2**30 + 1])),
    "rank-100000": one(entry(shape=[1] * 100_000)),
    "three-offsets": one(entry(offsets=[0, 2, 4])),
    "one-offset": one(entry(offsets=[4])),
    "offsets-null": one(entry(offsets=None)),
    "offset-negative": one(entry(offsets=[-4, 0])),
    "offset-float": one(entry(offsets=[0, 4.0])),
    "offset-true": one(entry(shape=[0], offsets=[False, False]), b""),
    "offsets-reversed": one(entry(offsets=[4, 0])),
    "offset-2-to-63": one(entry(shape=[2**61], offsets=[0, 2**63])),
    "offset-past-the-end": one(entry(shape=[2], offsets=[0, 8])),
    "gap-before": one(entry(offsets=[4, 8]), b"\0" * 8),
    "gap-between": two((0, 4), (8, 12), 12),
    "overlap": two((0, 8), (4, 12), 12),
    "same-bytes-twice": two((0, 4), (0, 4), 4),
    "tail-after-the-tensors": one(entry(), b"\0" * 5),
    "polyglot-zip-tail": one(entry(), b"\0" * 4 + b"PK\x05\x06" + b"\0" * 18),
    "shape-does-not-fill": one(entry(shape=[2])),
    "metadata-is-a-list": packed(b'{"__metadata__": [], ' + GOOD[1:], b"\0" * 4),
    "metadata-not-strings": packed(b'{"__metadata__": {"a": 1}, ' + GOOD[1:], b"\0" * 4),
    "name-empty": one(entry(), name=""),
    "name-of-100000": one(entry(), name="n" * 100_000),
    "name-is-a-path": one(entry(), name="../../../etc/passwd"),
    "name-with-escapes": one(entry(), name="\x1b[2J\r\n"),
    "name-is-a-surrogate": one(entry(), name="\ud800"),
    "no-tensors": packed(b"{}      "),
    "a-pickle": b"cposix\nsystem\n(S'touch canary'\ntR.",
    "a-zip": b"PK\x03\x04" + b"\0" * 200,
    "a-numpy-file": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    + b" " * 60,
}
