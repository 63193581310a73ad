"""Two files of lines: what is taken off, what is left out, what is refused, each by file and line."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from aiayn_jax.data.pairs import LONGEST_LINE, read_lines, read_pairs
from gpt_data.errors import InputError


def write(folder: Path, source: bytes, target: bytes) -> tuple[Path, Path]:
    paths = folder / "a.en", folder / "a.de"
    for path, content in zip(paths, (source, target), strict=True):
        path.write_bytes(content)
    return paths


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    # each of these ends a line for str.splitlines, and none does here
    odd = "one\u2028two\u0085three\x0bfour\x0cfive\x1csix\rseven"
    pairs = read_pairs(*write(tmp_path, f"{odd}\nb\n".encode(), b"x\ny"))
    assert list(pairs.source) == [odd, "b"]
    assert list(pairs.target) == ["x", "y"]
    assert pairs.notes == ()


def test_the_last_line_needs_no_line_feed_and_an_empty_one_after_it_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one\n\nthree")
    (tmp_path / "b").write_bytes(b"one\n\nthree\n")
    assert read_lines(tmp_path / "a") == read_lines(tmp_path / "b") == ["one", "", "three"]


def test_marks_and_carriage_returns_are_taken_off_and_counted(tmp_path: Path) -> None:
    source, target = write(tmp_path, b"\xef\xbb\xbfone\r\ntwo\r\n\xef\xbb\xbfthree\n", b"1\n2\r\n3\n")
    pairs = read_pairs(source, target)
    assert list(pairs.source) == ["one", "two", "\ufeffthree"]
    assert list(pairs.target) == ["1", "2", "3"]
    assert pairs.notes == (
        f"{source}: a byte-order mark was taken off",
        f"{source}: a carriage return was taken off the end of 2 lines",
        f"{target}: a carriage return was taken off the end of 1 line",
    )


def test_empty_lines_are_counted_by_side_and_shown(tmp_path: Path) -> None:
    source, target = write(tmp_path, b"a\n\n \t\nd\n\nf\n", b"1\n2\n3\n\n\n6\n")
    pairs = read_pairs(source, target)
    assert (list(pairs.source), list(pairs.target), list(pairs.numbers)) == (["a", "f"], ["1", "6"], [1, 6])
    assert pairs.notes == (
        f"{source} and {target}: 2 pairs left out, the source is empty (lines 2, 3)",
        f"{source} and {target}: 1 pair left out, the target is empty (line 4)",
        f"{source} and {target}: 1 pair left out, the source and target is empty (line 5)",
    )


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (b"a\nb\nc\n", b"1\n2\n", "a.en has 3 lines and {}a.de has 2: line i of one must"),
        (b"a\n", b"1\n2\n\n", "a.en has 1 lines and {}a.de has 3"),
        (b"", b"1\n", "a.en has 0 lines and {}a.de has 1"),
        (b"a\nb\xff\n", b"1\n2\n", "a.en line 2 is not UTF-8 at byte 2 of the line"),
        # half of a character at a line's end must not swallow the line feed
        (b"a\n", b"\xc3\n", "a.de line 1 is not UTF-8 at byte 1 of the line"),
        (b"a\n", b"\xed\xa0\x80\n", "a.de line 1 is not UTF-8"),
        (b"", b"", "holds no pair of sentences"),
        (b"\n\n", b"1\n\n", "holds no pair of sentences; .*1 pair left out, the source is empty"),
        (b"a\n" + b"b" * (LONGEST_LINE + 1), b"1\n2\n", "a.en line 2 is longer than 1,048,576 bytes"),
    ],
    ids=["longer", "shorter", "empty file", "bytes", "cut", "surrogate", "nothing", "blank", "huge"],
)
def test_what_cannot_be_read_is_refused_by_name(
    tmp_path: Path, source: bytes, target: bytes, message: str
) -> None:
    paths = write(tmp_path, source, target)
    with pytest.raises(InputError, match=message.replace("{}", f"{tmp_path}/")):
        read_pairs(*paths)


def test_a_missing_and_a_damaged_file_are_refused_by_name(tmp_path: Path) -> None:
    source, _ = write(tmp_path, b"a\n", b"1\n")
    with pytest.raises(InputError, match="absent"):
        read_pairs(source, tmp_path / "absent")
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(b"1\n" * 999)[:-9])
    with pytest.raises(InputError, match=r"cut\.gz"):
        read_pairs(source, cut)


def test_compressed_files_read_the_same(tmp_path: Path) -> None:
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress("ä\r\nb\n".encode()))
    assert read_lines(packed) == ["ä", "b"]
