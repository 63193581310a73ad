from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from gpt_data.errors import InputError
from gpt_data.sources import Document, base, open_source
from gpt_data.sources.base import HoldOut
from gpt_data.sources.standard_library import StandardLibrary, split_of
from gpt_data.sources.text_files import TextFiles
from hypothesis import given
from hypothesis import strategies as st

LIMIT = 2**20


def plain(content: bytes) -> bytes:
    return content


def zstd(content: bytes) -> bytes:
    compressed: bytes = pytest.importorskip("backports.zstd").compress(content)
    return compressed


PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": plain,
    ".bz2": bz2.compress,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def texts(path: Path, limit: int = LIMIT) -> list[str]:
    return [document.text for document in TextFiles(path, limit).documents()]


@pytest.mark.parametrize("suffix", PACKERS)
def test_every_kind_of_text_file(tmp_path: Path, suffix: str) -> None:
    pack = PACKERS[suffix]
    (tmp_path / f"a.txt{suffix}").write_bytes(pack(b"\xef\xbb\xbftext\r\n"))
    (tmp_path / f"b.md{suffix}").write_bytes(pack("# é\n".encode()))
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(("one\ntwo", "", "\u2028"))]
    (tmp_path / f"c.jsonl{suffix}").write_bytes(pack("\n\n".join(lines).encode()))
    (tmp_path / "d.csv").write_text("no text file")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "e.txt").write_text("hidden")
    assert texts(tmp_path) == ["text\r\n", "# é\n", "one\ntwo", "", "\u2028"]


def test_files_come_in_the_order_of_relative_paths(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.txt", "a/b/c.txt", "a.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert "".join(texts(tmp_path)) == "a.txta/b/c.txta/z.txtb.txt"


def test_files_named_val_are_held_out(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "t"}\n' * 60)
    (tmp_path / "val.jsonl.gz").write_bytes(gzip.compress(b'{"text": "v"}\n' * 3))
    source = TextFiles(tmp_path, LIMIT)
    expected = [Document("val", "v")] * 3 + [Document("train", "t")] * 60
    assert list(source.documents()) == expected
    assert list(source.documents(2)) == expected[2:]
    assert list(source.sample()) == ["t"] * 60
    assert len(list(TextFiles(tmp_path / "val.jsonl.gz", LIMIT).documents())) == 3
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(InputError, match="holds only files of other splits than train"):
        TextFiles(tmp_path, LIMIT)


@given(st.lists(st.text(max_size=3), max_size=120), st.integers(0, 130))
def test_holding_out_loses_nothing_and_starts_anywhere(documents: list[str], start: int) -> None:
    everything = list(HoldOut(lambda at: iter(documents[at:]), 50).documents())
    assert list(HoldOut(lambda at: iter(documents[at:]), 50).documents(start)) == everything[start:]
    if len(documents) < 50:
        splits = [document.split for document in everything]
        assert splits == sorted(splits)
        assert "".join(document.text for document in everything) == "".join(documents)
        held = sum(len(document.text) for document in everything if document.split == "val")
        # a twentieth, a line's end one more twentieth away, and half a character of rounding at both
        assert held <= 0.1 * sum(map(len, documents)) + 2
    else:
        assert [document.text for document in everything] == documents
        assert [i for i, document in enumerate(everything) if document.split == "val"] == [
            *range(1, len(documents), 50)
        ]


# once each was read twice: to see how few they are, and again
@pytest.mark.parametrize(("longest", "reads"), [(base.KEPT_CHARACTERS, 1), (30, 2)], ids=["short", "long"])
def test_few_documents_are_read_once(monkeypatch: pytest.MonkeyPatch, longest: int, reads: int) -> None:
    monkeypatch.setattr(base, "KEPT_CHARACTERS", longest)
    texts, opened = ["a line of text\n" * 9] * 5, list[int]()
    held = HoldOut(lambda start: iter(opened.append(start) or texts[start:]), 50)  # type: ignore[func-returns-value]
    documents = list(held.documents())
    assert len(opened) == reads
    assert "".join(document.text for document in documents) == "".join(texts)
    assert list(held.documents(3)) == documents[3:]


@pytest.mark.parametrize("sizes", [(100, 300), (200, 200, 200), (10, 1000, 10), (400,)], ids=str)
def test_of_few_files_a_few_per_cent_are_held_out(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    for number, size in enumerate(sizes):
        (tmp_path / f"{number}.txt").write_text("word " * 24 * size + "\n" + "a line\n" * 20 * size)
    source = TextFiles(tmp_path, LIMIT)
    held = sum(len(document.text) for document in source.documents() if document.split == "val")
    total = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 0.04 < held / total < 0.06
    assert source.identity()["held_out"] == "1 document in 50, or the last 5% of the text of fewer"


def test_a_lone_document_is_cut_after_a_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(f"line {i:03d}\n" for i in range(100)))
    train, val = TextFiles(tmp_path / "a.txt", LIMIT).documents()
    assert (train.split, val.split) == ("train", "val")
    assert val.text == "".join(f"line {i:03d}\n" for i in range(95, 100))
    assert train.text.endswith("line 094\n")


def test_a_line_far_back_is_no_place_to_cut(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("title\n" + "x" * 994)
    assert [len(text) for text in texts(tmp_path)] == [950, 50]


def test_one_character_is_something_to_train_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert list(TextFiles(tmp_path, LIMIT).documents()) == [Document("train", "a")]


def test_what_of_a_folder_is_left_out_is_counted(tmp_path: Path) -> None:
    corpus, outside = tmp_path / "corpus", tmp_path / "outside"
    (corpus / "sub" / ".git").mkdir(parents=True)
    outside.mkdir()
    for path in (corpus / "A.TXT", corpus / "b.text", corpus / "sub" / "c.Md", outside / "d.txt"):
        path.write_text(path.name)
    for name in ("e.json", "f.csv", "g.parquet.gz", ".hidden.txt", "sub/.git/h.txt"):
        (corpus / name).write_text(name)
    (corpus / "i.jsonl.bz2").write_bytes(bz2.compress(b'{"text": "i"}'))
    (corpus / "link").symlink_to(outside)
    (corpus / "dead.txt").symlink_to(corpus / "nothing")
    (corpus / "linked.txt").symlink_to(outside / "d.txt")
    os.mkfifo(corpus / "pipe.txt")
    source = TextFiles(corpus, LIMIT)
    assert "".join(d.text for d in source.documents()) == "A.TXTb.textid.txtc.Md"
    assert len(source.notes) == 1
    assert source.notes[0].startswith(f"{corpus}: 5 files are read, left out are ")
    counts = dict(reversed(count.split(" ", 1)) for count in source.notes[0].split("are ")[-1].split(", "))
    assert counts == {"links to folders": "1", "hidden": "2", "links to nothing": "1", "of other kinds": "4"}


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path: Any) -> Any:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=f"cannot read {tmp_path / 'closed'}: Permission denied"):
        TextFiles(tmp_path, LIMIT)


def write_parquet(path: Path, column: list[Any], name: str = "text") -> None:
    pa = pytest.importorskip("pyarrow")
    import_module("pyarrow.parquet").write_table(
        pa.table({name: column, "id": list(range(len(column)))}), path
    )


def test_the_rows_of_parquet_are_documents(tmp_path: Path) -> None:
    written = [f"row {i} é\n" * (i % 3) for i in range(700)]
    write_parquet(tmp_path / "a.parquet", written[:400])
    write_parquet(tmp_path / "b.parquet", written[400:])
    assert texts(tmp_path) == written
    assert [d.text for d in TextFiles(tmp_path, LIMIT).documents(399)] == written[399:]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (["a", None], "row 2: field 'text' is null, expected a string"),
        ([{"a": 1}], "row 1: field 'text' is an object, expected a string"),
        ([1, 2], "row 1: field 'text' is a number, expected a string"),
        (["a" * 200], "row 1 is longer than 100 bytes; split it"),
        (["é" * 100, "é" * 50], "row 1 is longer than 100 bytes; split it"),
    ],
)
def test_rows_without_usable_text_are_named(tmp_path: Path, column: list[Any], message: str) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, column)
    with pytest.raises(InputError, match=f"{path} {message}"):
        texts(path, 100)


@pytest.mark.parametrize("source", ["text", "hf"])
@pytest.mark.parametrize("damage", ["cut", "middle", "empty", "other column", "broken line", "an object"])
def test_a_broken_local_file_is_named_at_once(tmp_path: Path, source: str, damage: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n')
    path = tmp_path / ("b.jsonl" if damage in ("broken line", "an object") else "b.parquet")
    write_parquet(
        tmp_path / "b.parquet", [f"{i}" * 50 for i in range(3000)], "no" if "col" in damage else "text"
    )
    whole = (tmp_path / "b.parquet").read_bytes()
    if path.suffix == ".jsonl":
        (tmp_path / "b.parquet").unlink()
        path.write_text(
            '{"text": "good"}\n' + ('{"text": broken\n' if "line" in damage else '{"text": {"a": 1}}\n')
        )
    elif damage == "middle":
        path.write_bytes(whole[:200] + bytes(400) + whole[600:])
    else:
        path.write_bytes({"cut": whole[:-9], "empty": b""}.get(damage, whole))
    with pytest.raises(InputError, match=str(path)) as caught:
        list(open_source(f"{source}:{tmp_path}", LIMIT, on_notice=pytest.fail).documents())
    assert caught.value.exit_status == 65
    assert "\n" not in str(caught.value)


def test_a_local_folder_of_the_hubs_kind_is_read_by_split(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "validation", "test"):
        for part in range(2):
            lines = "".join(json.dumps({"text": f"{split} {part} {i}"}) + "\n" for i in range(3))
            (tmp_path / "data" / f"{split}-{part:05d}-of-00002.jsonl").write_text(lines)
    source = open_source(f"hf:{tmp_path}", LIMIT)
    documents = list(source.documents())
    assert [d.split for d in documents] == ["val"] * 6 + ["train"] * 6
    assert {d.text.split()[0] for d in documents if d.split == "train"} == {"train"}
    tested = "".join(d.text for d in open_source(f"hf:{tmp_path}::test", LIMIT).documents())
    assert tested.count("test") == 6 == tested.count("t ")
    with pytest.raises(InputError, match="holds only files of other splits than other"):
        open_source(f"hf:{tmp_path}::other", LIMIT)
    with pytest.raises(InputError, match="a folder has no configuration 'large'"):
        open_source(f"hf:{tmp_path}:large", LIMIT)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"ab\xff", "is not UTF-8 at byte 2"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "line 1 is not UTF-8"),
        (
            "a.jsonl",
            b'{"content": "x", "id": 1}',
            r"line 1 has no field 'text'; it has 'content', 'id'",
        ),
        ("a.jsonl", b'{"text": 5}', "line 1: field 'text' is a number, expected a string"),
        ("a.jsonl", b'["x"]', "line 1 is a JSON array, expected an object"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1 holds a lone surrogate at character 0"),
        ("a.txt.gz", b"no gzip", "cannot read"),
        ("a.txt.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9], "cannot read"),
        ("a.txt.xz", lzma.compress(b"x" * 1000)[:-9], "cannot read"),
        ("a.txt.xz", b"no xz", "cannot read"),
        ("a.txt.zst", b"no zstd", "cannot read"),
    ],
)
def test_damaged_text_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("backports.zstd")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        texts(tmp_path)
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz"])
def test_a_document_over_the_limit_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(b'{"text": "' + b"a" * 100_000_000, 1))
    tracemalloc.start()
    with pytest.raises(InputError, match=f"{path}.* is longer than {LIMIT} bytes; split it"):
        texts(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * LIMIT


def test_a_document_at_the_limit_is_taken(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * 100)
    assert "".join(texts(tmp_path, 100)) == "x" * 100
    with pytest.raises(InputError, match="longer than 99 bytes"):
        texts(tmp_path, 99)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nothing", "unknown source 'nothing'; choose one of stdlib, text:PATH"),
        ("text:", "unknown source 'text:'"),
        ("hf:", "unknown source 'hf:'"),
        ("hf:a:b:c:d", r"is not hf:NAME\[:CONFIG\[:SPLIT\]\]"),
        ("text:/no/such/place", "/no/such/place: there is no such file or folder"),
    ],
)
def test_unknown_sources_are_named(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(spec, LIMIT)


def test_a_path_without_its_kind_is_told_what_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for name in ("a.txt", "train.bin", "shards/train-00000.bin"):
        (tmp_path / name).touch()
    for name, kind in (("a.txt", "text"), ("train.bin", "nanogpt"), ("shards", "shards"), ("..", "text")):
        path = f"{tmp_path}/{name}"
        with pytest.raises(InputError, match=rf"unknown source '{path}': perhaps you meant {kind}:{path}$"):
            open_source(path, LIMIT)


def test_folders_and_files_without_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{tmp_path} holds no file of .txt, .text, .md, .jsonl, .parquet"):
        open_source(f"text:{tmp_path}", LIMIT)
    (tmp_path / "a.csv").touch()
    with pytest.raises(InputError, match=r"a\.csv is none of"):
        open_source(f"text:{tmp_path / 'a.csv'}", LIMIT)


def test_the_standard_library_is_large_and_the_same_every_time() -> None:
    source = StandardLibrary(64 * 2**20)
    assert source.total_bytes is not None
    assert source.total_bytes > 5_000_000
    documents = list(source.documents())
    assert documents == list(StandardLibrary(64 * 2**20).documents())
    assert list(source.documents(100)) == documents[100:]
    assert any("class OrderedDict" in document.text for document in documents)
    held = sum(document.split == "val" for document in documents)
    assert 0.005 < held / len(documents) < 0.05
    assert {d.text for d in documents if d.split == "train"} == set(source.sample())


def test_the_standard_library_leaves_out_what_is_no_text_of_its_own(tmp_path: Path) -> None:
    names = {
        "b.py": b"b",
        "a/c.py": b"c",
        "bad.py": b"\xff",
        "site-packages/d.py": b"d",
        "e.txt": b"e",
        "long.py": b"x" * 99,
    }
    for name, content in names.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    source = StandardLibrary(50, tmp_path)
    assert [document.text for document in source.documents()] == ["c", "b", ""]
    with pytest.raises(InputError, match=r"no \*\.py files under"):
        StandardLibrary(50, tmp_path / "site-packages" / "none")


def test_a_file_stays_on_its_side_of_the_split() -> None:
    # frozen: a changed hash would move training text into the held-out split of old runs
    names = ("abc.py", "ast.py", "json/decoder.py", "os.py")
    assert [name for name in names if split_of(name) == "val"] == ["abc.py"]
    assert 150 < sum(split_of(f"{i}.py") == "val" for i in range(10_000)) < 250
