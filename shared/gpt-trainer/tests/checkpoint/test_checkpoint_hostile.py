"""Files made to harm: each is refused with one typed error, quickly and within its own size of memory."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpt_trainer.checkpoint import CheckpointState, load_checkpoint, load_huggingface, resolve
from gpt_trainer.checkpoint.tensors import HEADER_LIMIT, TensorFile, parse_header
from gpt_trainer.errors import InputError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SECONDS, MEGABYTES = 1.0, 64


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


def refused(load: Callable[[], object]) -> InputError:
    """The error of ``load``, which must come in time and without much memory."""
    tracemalloc.start()
    start = time.monotonic()
    try:
        with pytest.raises(InputError) as caught:
            load()
        seconds, (_, peak) = time.monotonic() - start, tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds <= SECONDS
    assert peak <= MEGABYTES * 2**20
    text = str(caught.value)
    assert text.isprintable()
    assert text.isascii()
    return caught.value


def forge(step: Path, name: str, content: bytes) -> None:
    """Replace a file, and the manifest with it, as one who wants to be believed would."""
    (step / name).write_bytes(content)
    path = step / "manifest.json"
    values = json.loads(path.read_bytes())
    values["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    path.write_bytes(json.dumps(values, indent=2).encode() + b"\n")


def test_the_corpus_is_large_enough() -> None:
    assert len(HEADERS) >= 60


@pytest.mark.parametrize("case", HEADERS)
def test_hostile_tensors_are_refused(case: str, run: Path) -> None:
    step = resolve(run)
    for name in ("optimizer.safetensors", "model.safetensors"):
        forge(step, name, HEADERS[case])
        error = refused(lambda: load_checkpoint(step))
        assert "refused step-00000002" in str(error)
        assert name in str(error)
    error = refused(lambda: load_huggingface(step))
    assert error.exit_status == 65


JSONS = [b"", b"{}", b"null", b"[]", b"{", b"[" * 60_000, b'{"a":' * 10_000, b'{"a":1,"a":2}', b'{"a":NaN}']
JSONS += [b'{"a":-Infinity}', b'{"a":1e999}', b"\xff", b"\xef\xbb\xbf{}", b'{"b":' + b"9" * 5000 + b"}"]
JSONS += [b" " * (1 << 25)]


@pytest.mark.parametrize("name", ["config.json", "trainer.json", "manifest.json"])
@pytest.mark.parametrize("content", JSONS, ids=lambda content: ascii(content[:12]))
def test_hostile_json_is_refused(content: bytes, name: str, run: Path) -> None:
    step = resolve(run)
    if name == "manifest.json":
        (step / name).write_bytes(content)
    else:
        forge(step, name, content)
    assert name in str(refused(lambda: load_checkpoint(step)))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "trainer.json", "manifest.json"])
@pytest.mark.parametrize("kind", ["fifo", "link", "link-to-itself", "folder", "device"])
def test_only_regular_files_are_opened(kind: str, name: str, run: Path, tmp_path: Path) -> None:
    step = resolve(run)
    path = step / name
    path.rename(tmp_path / "original")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        targets = {"link": tmp_path / "original", "link-to-itself": path, "device": Path("/dev/zero")}
        path.symlink_to(targets[kind])
    assert name in str(refused(lambda: load_checkpoint(step)))


def test_a_pickle_is_never_opened(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    canary = b"cposix\nsystem\n(S'touch canary'\ntR."
    step = resolve(run)
    for name in (
        "model.safetensors",
        "optimizer.safetensors",
        "trainer.json",
        "config.json",
        "tokenizer.json",
    ):
        forge(step, name, canary)
        refused(lambda: load_checkpoint(step))
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "config.json").write_bytes((run / "checkpoints/step-00000001/config.json").read_bytes())
    (folder / "pytorch_model.bin").write_bytes(canary)
    text = str(refused(lambda: load_huggingface(folder)))
    assert "pytorch_model.bin" in text
    assert "model.safetensors" in text
    assert not (tmp_path / "canary").exists()


def test_every_difference_is_listed(run: Path, make_state: Callable[..., CheckpointState]) -> None:
    step = resolve(run)
    raw = (step / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["../../x"] = header.pop("transformer.ln_f.bias")
    header["transformer.ln_f.weight"]["dtype"] = "I32"
    attention = header["transformer.h.0.attn.c_attn.weight"]
    attention["shape"] = attention["shape"][::-1]
    text = json.dumps(header).encode()
    forge(step, "model.safetensors", packed(text, raw[8 + length :]))
    message = str(refused(lambda: load_checkpoint(step)))
    for part in (
        "missing transformer.ln_f.bias (2,)",
        "unexpected '../../x' (2,)",
        "transformer.ln_f.weight has dtype I32, expected F32",
        "transformer.h.0.attn.c_attn.weight has shape (6, 2), expected (2, 6) (transposed?)",
    ):
        assert part in message


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors"])
def test_weights_that_are_not_finite_are_refused(name: str, run: Path) -> None:
    step = resolve(run)
    raw = (step / name).read_bytes()
    forge(step, name, raw[:-4] + struct.pack("<f", float("nan")))
    assert "holds NaN or infinity" in str(refused(lambda: load_checkpoint(step)))


def parses(header: bytes, payload: int) -> bool:
    try:
        entries = parse_header(header, payload, Path("f"))
    except InputError:
        return False
    return sum(item.end - item.begin for item in entries.values()) == payload


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
small = st.integers(-1, 12)
tensors = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "U8", "X"]) | json_values,
        "shape": st.lists(small, max_size=3) | json_values,
        "data_offsets": st.lists(small, min_size=2, max_size=2) | json_values,
    }
)


@settings(max_examples=1000, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.text(max_size=3), tensors, max_size=3), st.integers(0, 24))
def test_no_header_breaks_the_parser(header: dict[str, Any], payload: int) -> None:
    parses(json.dumps(header).encode(), payload)


@settings(max_examples=1000, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.binary(max_size=64), st.integers(0, len(GOOD)), st.integers(0, 8))
def test_no_bytes_break_the_parser(noise: bytes, position: int, removed: int) -> None:
    parses(GOOD[:position] + noise + GOOD[position + removed :], 4)


def test_the_corpus_is_built_around_a_good_file(tmp_path: Path) -> None:
    # otherwise a case might be refused for a reason that is not its own
    (tmp_path / "good").write_bytes(packed(GOOD, b"\0\0\x80\x3f"))
    with TensorFile(tmp_path / "good") as file:
        assert {name: value.tolist() for name, value in file.read(["a"]).items()} == {"a": [1.0]}
