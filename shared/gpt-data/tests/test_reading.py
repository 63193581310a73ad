"""Files that nobody has vouched for: every fault is one error with file and line, in bounded memory."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gpt_data.errors import InputError
from gpt_data.store.json_lines import read_json_lines, read_lines, text_field
from gpt_data.store.reading import open_regular, read_bytes
from gpt_data.store.unpacking import open_unpacked

TEXT = random.Random(0).randbytes(200_000).hex().encode()


def zstd(content: bytes) -> bytes:
    try:
        from compression import zstd
    except ImportError:
        zstd = pytest.importorskip("backports.zstd")
    packed: bytes = zstd.compress(content)
    return packed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".bz2": bz2.compress,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def unpacked(path: Path) -> bytes:
    with open_unpacked(path) as file:
        return file.read()


@pytest.mark.parametrize("suffix", PACKERS)
def test_all_streams_of_a_compressed_file_are_read(tmp_path: Path, suffix: str) -> None:
    path, pack = tmp_path / f"a.txt{suffix}", PACKERS[suffix]
    path.write_bytes(pack(TEXT) + pack(b"") + pack(b"tail"))
    assert unpacked(path) == TEXT + b"tail"
    path.write_bytes(pack(b""))
    assert unpacked(path) == b""


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda packed: packed[: len(packed) // 2], "it ended before the end of the stream"),
        (lambda packed: b"", "it is empty, which no .* file is"),
        (lambda packed: packed + b"garbage", ""),
        (lambda packed: b"no such format", ""),
    ],
    ids=["half", "empty", "garbage behind", "other format"],
)
def test_a_damaged_compressed_file_is_named(
    tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes], reason: str
) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(damage(PACKERS[suffix](TEXT)))
    with pytest.raises(InputError, match=f"cannot read {path}: {reason}") as caught:
        unpacked(path)
    assert caught.value.exit_status == 65
    assert "\n" not in str(caught.value)


def test_zst_where_nothing_unpacks_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.zst").write_bytes(b"(\xb5/\xfd")
    with pytest.raises(InputError, match=r"a\.zst needs Python 3\.14 or backports\.zstd"):
        unpacked(tmp_path / "a.zst")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_name_that_says_nothing_leaves_it_to_the_content(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_bytes(PACKERS[suffix](b'{"a": 1}\n'))
    assert [record for _, record in read_json_lines(path, 100)] == [{"a": 1}]
    path.write_bytes(b"")
    assert unpacked(path) == b""


def test_neither_pipes_nor_folders_nor_odd_names_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", Path("a\0b")):
        with pytest.raises(InputError, match=r"cannot read|is missing|is not a regular"):
            open_regular(path)
    (tmp_path / "long").write_bytes(b"12345")
    assert read_bytes(tmp_path / "long", 5) == b"12345"
    with pytest.raises(InputError, match="has 5 bytes, at most 4 are accepted"):
        read_bytes(tmp_path / "long", 4)


def test_what_the_disk_reports_while_reading_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(b"a"))

    def fail(*_: Any) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(gzip.GzipFile, "read", fail)
    with pytest.raises(InputError, match=f"cannot read {path}: Input/output error"):
        unpacked(path)


def test_blank_lines_and_byte_order_marks_are_no_records(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n \t\n\xef\xbb\xbf\n{"a": 2}')
    assert list(read_json_lines(path, 100)) == [(f"{path} line 1", {"a": 1}), (f"{path} line 5", {"a": 2})]


BAD_LINES = [
    (b"{", "is not JSON"),
    (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON: Exceeds the limit"),
    (b"[" * 100_000, "is not JSON: maximum recursion depth"),
    (b'{"a": "\xff"}', "is not UTF-8 at byte 7"),
    (b"[1]", "is a JSON array, expected an object"),
    (b"null", "is a JSON null, expected an object"),
    (b'{"a":' + b" " * 200_000 + b"1}", "is longer than 150000 bytes"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES, ids=[message for _, message in BAD_LINES])
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n\n' + line + b"\n")
    with pytest.raises(InputError, match=f"{path} line 3 {message}") as caught:
        list(read_json_lines(path, 150_000))
    assert len(str(caught.value)) < 300 + len(str(path))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": None}, "X: field 'text' is null, expected a string"),
        ({"text": 5}, "X: field 'text' is a number, expected a string"),
        ({"text": ["a"]}, "X: field 'text' is an array, expected a string"),
        ({"text": {}}, "X: field 'text' is an object, expected a string"),
        ({"text": True}, "X: field 'text' is a boolean, expected a string"),
        ({"b": 1, "a": 2}, "X has no field 'text'; it has 'a', 'b'"),
        ({}, "X has no field 'text'; it is empty"),
        (
            {f"{i:03}" * 100: 0 for i in range(100)},
            r"X has no field 'text'; it has '000000.*\.\.\. \(100 in all\)",
        ),
    ],
)
def test_a_field_without_text_is_said_as_it_is(record: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        text_field(record, "X")
    assert len(str(caught.value)) < 1100


def test_a_file_is_bounded_as_its_lines_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}\n" * 1000))
    assert len(list(read_lines(path, 10, 3000))) == 1000
    with pytest.raises(InputError, match=f"{path} is longer than 2999 bytes, unpacked"):
        list(read_lines(path, 10, 2999))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_line_without_end_is_refused_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"bomb.jsonl{suffix}"
    path.write_bytes(PACKERS[suffix](b'{"text": "' + b"a" * 100_000_000))
    tracemalloc.start()
    with pytest.raises(InputError, match=f"{path} line 1 is longer than {2**20} bytes"):
        list(read_json_lines(path, 2**20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24  # the dictionary of an .xz is 8 MiB


def test_lines_are_those_of_a_plain_reader(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "é\u2028\x85" * i}) for i in range(500)]
    content = "\n".join(lines).encode()
    for suffix, pack in PACKERS.items():
        if suffix == ".zst":
            continue
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(pack(content))
        assert [line for _, line in read_lines(path, 10**6)] == list(io.BytesIO(content))
