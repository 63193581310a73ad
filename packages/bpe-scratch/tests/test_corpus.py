"""Documents of files and folders: whole, in bounded memory, and what is left out is told."""

from __future__ import annotations

import bz2
import gzip
import importlib
import json
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bpe_scratch import FileFormatError, Tokenizer, corpus, train
from bpe_scratch.corpus import read_parts
from bpe_scratch.unpacking import unpack

TEXT = "the cat sat\non the mat\n" * 2000


def zstd(raw: bytes) -> bytes:
    try:
        return importlib.import_module("compression.zstd").compress(raw)
    except ImportError:
        return pytest.importorskip("backports.zstd").compress(raw)


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstd
}  # fmt: skip


def documents(*paths: Path, pattern: str = "none", told: list[str] | None = None, **given: Any) -> list[str]:
    found, parts = [], []
    for part in read_parts(paths, pattern=pattern, tell=(told if told is not None else []).append, **given):
        parts.append(part.text)
        if part.last:
            found.append("".join(parts))
            parts = []
    assert not parts
    return found


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("upper", [False, True])
def test_every_compression_is_read_whatever_its_case(tmp_path: Path, kind: str, upper: bool) -> None:
    pack = PACKERS[kind]
    text, lines = tmp_path / f"a.txt{kind}", tmp_path / f"b.jsonl{kind}"
    if upper:
        text, lines = (Path(str(path.parent / path.name.upper())) for path in (text, lines))
    # two streams one after another are one text
    text.write_bytes(pack(TEXT[:100].encode()) + pack(TEXT[100:].encode()))
    lines.write_bytes(pack(b"\xef\xbb\xbf" + b'{"text": "one"}\r\n\n  \n{"text": "two"}'))
    assert documents(text, lines) == [TEXT, "one", "two"]


# once a gzip cut short ended in EOFError, a .zst in silence, and .xz before garbage was whole
@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_damaged_files_are_refused_by_name(tmp_path: Path, kind: str, name: str) -> None:
    lines = "".join(json.dumps({"text": f"{i} {i * 7919 % 1009}"}) + "\n" for i in range(3000))
    whole = PACKERS[kind](lines.encode())
    path = tmp_path / (name + kind)
    cuts = [0, 1, 5, len(whole) // 2, len(whole) - 4, len(whole) - 1]
    damaged = [whole[:n] for n in cuts] + [whole + b"garbage", b"garbage" + whole, whole + whole[:-9]]
    damaged.append(whole[:40] + bytes([whole[40] ^ 255]) + whole[41:])
    for number, raw in enumerate(damaged):
        path.write_bytes(raw)
        with pytest.raises(FileFormatError, match=rf"{name}\{kind}"):
            assert documents(path) == number


@pytest.mark.parametrize("kind", [".bz2", ".xz", ".zst"])
def test_zeros_may_fill_a_compressed_file_up(tmp_path: Path, kind: str) -> None:
    # Python's own reader takes them for garbage and what follows them for nothing
    pack, path = PACKERS[kind], tmp_path / f"a.txt{kind}"
    path.write_bytes(pack(b"a") + bytes(300_000) + pack(b"") + pack(b"b") + bytes(4))
    assert documents(path) == ["ab"]


def test_an_xz_that_wants_gigabytes_to_be_unpacked_is_refused(tmp_path: Path) -> None:
    whole = bytearray(lzma.compress(b"text"))
    # the block's header: its size, flags, LZMA2 with the size of its dictionary, padding, a checksum
    assert whole[14:16] == b"\x21\x01"
    end = 12 + 4 * whole[12]
    whole[16] = 39
    whole[end : end + 4] = zlib.crc32(whole[12:end]).to_bytes(4, "little")
    (tmp_path / "a.xz").write_bytes(whole)
    with pytest.raises(FileFormatError, match=r"a\.xz cannot be unpacked: Memory usage limit exceeded"):
        documents(tmp_path / "a.xz")


def test_zst_where_nothing_unpacks_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("compression.zstd", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "a.zst").write_bytes(b"(\xb5/\xfd")
    with pytest.raises(FileFormatError, match=r"a\.zst needs Python 3\.14 or backports\.zstd"):
        documents(tmp_path / "a.zst")


class Counted:
    """A file that notes how much is read of it."""

    def __init__(self, file: Any, seen: list[int]) -> None:
        self._file, self._seen = file, seen

    def read(self, size: int) -> bytes:
        return self._noted(self._file.read(size))

    def readline(self, size: int) -> bytes:
        return self._noted(self._file.readline(size))

    def _noted(self, data: bytes) -> bytes:
        self._seen.append(len(data))
        return data


# once 1.2 GB of one letter grew without end
@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize(("name", "says"), [("a.txt", "cannot be cut"), ("a.jsonl", "line 1: more than")])
def test_a_stretch_has_a_limit(
    tmp_path: Path, kind: str, name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "MAX_STRETCH", 1 << 22)
    path = tmp_path / (name + kind)
    path.write_bytes(PACKERS[kind](b"a" * (1 << 25)))
    seen: list[int] = []
    monkeypatch.setattr(corpus, "unpack", lambda *given: Counted(unpack(*given), seen))
    with pytest.raises(FileFormatError, match=says):
        documents(path, pattern="gpt2")
    # a little more than the limit is ever unpacked
    assert 1 << 22 < sum(seen) <= (3 << 22 if kind != ".zst" else 1 << 25)


# once texts of 4 MiB were cut at a line's end, and ids changed
@pytest.mark.parametrize("pattern", ["gpt2", "cl100k", "o200k", "none", r"\s+|\S+"])
def test_parts_do_not_show_in_the_ids(
    tmp_path: Path, pattern: str, shakespeare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_PART", 50)
    monkeypatch.setattr(corpus, "_CHUNK", 33)
    hostile = (
        "a\n\nb\n" + 99 * "x" + "\n\n\n  9 's's \u3000\u3000 é中中 中文\r\n\r\n!\n\n!\n a1 \n b's\n" * 20
    )
    text = "\ufeff" + hostile + shakespeare[:3000] + hostile
    (tmp_path / "a.txt").write_text(text, "utf-8", newline="")
    tokenizer = train([shakespeare[:50_000]], 400, pattern=pattern)
    parts = list(read_parts([tmp_path / "a.txt"], pattern=pattern))
    assert (len(parts) > 20) == (pattern not in ("none", r"\s+|\S+"))
    ids = [i for part in parts for i in tokenizer.encode(part.text)]
    assert ids == tokenizer.encode(text.removeprefix("\ufeff"))


def test_a_bad_byte_is_named_by_its_line_in_whatever_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_PART", 50)
    monkeypatch.setattr(corpus, "_CHUNK", 33)
    (tmp_path / "a.txt").write_bytes(b"the cat sat\n" * 40 + b"on \xff\n")
    with pytest.raises(FileFormatError, match="line 41"):
        list(read_parts([tmp_path / "a.txt"], pattern="gpt2"))


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"y": 1}\n', "line 2: no text in field 'text' of {'y': 1}"),
        ("a.jsonl", b'{"text": 1}\n', "line 1: no text in field 'text' of {'text': 1}"),
        ("a.jsonl", b'{"text": null}\n', "line 1: no text in field 'text' of {'text': None}"),
        ("a.jsonl", b"[]\n", r"line 1: no text in field 'text' of \[\]"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "ab\\ud800"}\n',
            "line 2: lone surrogate U.D800 at",
        ),
        ("a.jsonl", b'{"text": "x", "n": ' + b"9" * 5000 + b"}\n", "line 1: no JSON"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1: no JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1: no JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "line 2: no JSON"),
        ("a.txt", b"ok\n\xff", "line 2: byte 0xFF is not UTF-8"),
        ("a.txt", b"ok\n\xe4\xb8", "line 2: byte 0xE4 is not UTF-8"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_documents_are_named_by_line(tmp_path: Path, name: str, raw: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(FileFormatError, match=message):
        documents(tmp_path / name)


def test_a_folder_is_read_and_what_is_not_is_counted(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    (folder / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    for name in ("b.txt", "A.TXT", "deep/c.md", "d.text", "x.json", "x.parquet", "y.parquet", ".hidden.txt"):
        (folder / name).write_text(name, "utf-8")
    (folder / "e.jsonl.bz2").write_bytes(bz2.compress(b'{"text": "e"}'))
    (elsewhere / "linked.txt").write_text("linked", "utf-8")
    (folder / "link").symlink_to(elsewhere)
    (folder / "deep" / "back").symlink_to(folder)
    (folder / "dead.txt").symlink_to(tmp_path / "nowhere")
    (folder / "file.txt").symlink_to(elsewhere / "linked.txt")
    told: list[str] = []
    found = documents(folder, told=told)
    assert sorted(found) == ["A.TXT", "b.txt", "d.text", "deep/c.md", "e", "linked", "linked"]
    others = "5 left out: 1 .json, 2 .parquet, 1 hidden, 1 links that lead nowhere"
    assert told == [f"{folder}: 7 files read, {others}"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match="holds no file of"):
        documents(tmp_path / "empty")


def test_a_lone_text_is_no_list_of_texts() -> None:
    tokenizer = Tokenizer.from_bytes()
    for work in (tokenizer.encode_to_numpy, lambda texts: train(texts, 300)):
        with pytest.raises(TypeError, match=r"found one text: 'abc'; give \[text\]"):
            work("abc")
    with pytest.raises(TypeError, match="found one text"):
        train(["abc"], 300, special_tokens="<|x|>")
