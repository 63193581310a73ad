"""Files that others read, and files that nobody should have written."""

from __future__ import annotations

import base64
import errno
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from bpe_oracles import as_hugging_face, as_tiktoken
from bpe_scratch import PATTERNS, FileFormatError, Tokenizer, WriteError, files, train
from bpe_scratch.byte_alphabet import BYTES_IN_ID_ORDER, from_printable, to_printable
from tokenizers import Tokenizer as HuggingFace

TEXT = "The cat's 1234 naïve café\r\n\r\n  sat — 中文 DON'T hELLO. \n <|endoftext|> x\t\t y  "


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return train([TEXT * 4], 330)


def test_the_byte_alphabet_is_a_bijection() -> None:
    every = bytes(range(256))
    assert from_printable(to_printable(every)) == every
    assert len(set(to_printable(every))) == 256
    assert to_printable(b" a\n") == "ĠaĊ"
    assert sorted(to_printable(bytes([b])) for b in BYTES_IN_ID_ORDER) == [
        to_printable(bytes([b])) for b in BYTES_IN_ID_ORDER
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_hugging_face_reads_our_file_and_gives_the_same_ids(tmp_path: Path, pattern: str) -> None:
    tokenizer = train([TEXT * 4], 330, pattern=pattern)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    theirs = HuggingFace.from_file(str(path))
    plain = TEXT.replace("<|endoftext|>", "")
    assert theirs.encode(plain).ids == tokenizer.encode(plain)
    assert theirs.encode(TEXT).ids == tokenizer.encode(TEXT, allowed_special={"<|endoftext|>"})
    assert theirs.decode(tokenizer.encode(plain)) == plain


@pytest.mark.parametrize("pattern", [*PATTERNS, r"\d|\D+"])
def test_our_file_comes_back_the_same(tmp_path: Path, pattern: str) -> None:
    tokenizer = train([TEXT * 4], 330, pattern=pattern)
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.to_json() == tokenizer.to_json()
    assert again.sha256 == tokenizer.sha256
    assert again.pattern == tokenizer.pattern
    assert again.encode(TEXT) == tokenizer.encode(TEXT)


def test_a_file_that_hugging_face_wrote_gives_its_ids(tmp_path: Path, small: Tokenizer) -> None:
    theirs = as_hugging_face(small)
    theirs.save(str(tmp_path / "theirs.json"))
    assert Tokenizer.load(tmp_path / "theirs.json").encode(TEXT) == small.encode(TEXT)


def test_tiktoken_ranks_give_tiktokens_ids(tmp_path: Path, gpt2: Tokenizer) -> None:
    path = write_ranks(tmp_path, gpt2.vocabulary.tokens)
    again = Tokenizer.from_tiktoken(path, pattern="gpt2", special_tokens={"<|endoftext|>": 50256})
    assert again.encode(TEXT) == gpt2.encode(TEXT) == as_tiktoken(gpt2).encode_ordinary(TEXT)
    # every split of a token is a merge: "a" and "the" stand before what makes "the"
    again.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.encode(TEXT) == again.encode(TEXT)
    assert loaded.encode(TEXT, allowed_special="all") == as_hugging_face(again).encode(TEXT).ids
    assert loaded.sha256 == again.sha256


def write_ranks(tmp_path: Path, tokens: Iterable[bytes | None]) -> Path:
    path = tmp_path / "ranks.tiktoken"
    rows = [
        f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens) if token is not None
    ]
    path.write_text("".join(rows), "utf-8")
    return path


def test_ranks_that_no_merges_could_say(tmp_path: Path) -> None:

    # "abc" is a token, but neither "ab" nor "bc" is: only the whole piece can become it
    tokens = [bytes([b]) for b in BYTES_IN_ID_ORDER] + [b"abc", b"aa", b"aaa", b"xy", b"yx", b"xyx"]
    path = write_ranks(tmp_path, tokens)
    for layer in ("auto", "reference"):
        tokenizer = Tokenizer.from_tiktoken(path, pattern="gpt2")
        tokenizer = Tokenizer(tokenizer.vocabulary, layer=layer)  # type: ignore[arg-type]
        theirs = as_tiktoken(tokenizer)
        chance = random.Random(0)
        for text in ["abc", "abcabc", "xabc", *("".join(chance.choices("abcxy ", k=12)) for _ in range(500))]:
            assert tokenizer.encode(text) == theirs.encode_ordinary(text), text


def gpt2_style(tmp_path: Path, merges: str | bytes, extra: list[str]) -> tuple[Path, Path]:
    vocab = {to_printable(bytes([b])): i for i, b in enumerate(BYTES_IN_ID_ORDER)}
    vocab |= {token: 256 + i for i, token in enumerate(extra)}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab), "utf-8")
    raw = merges.encode() if isinstance(merges, str) else merges
    (tmp_path / "merges.txt").write_bytes(raw)
    return tmp_path / "vocab.json", tmp_path / "merges.txt"


@pytest.mark.parametrize(
    "merges",
    [
        "#version: 0.2\na b\nab c\n",
        "a b\r\nab c\r\n",
        "\ufeff#version: 0.2\na b\nab c",
        "a b\nab c\n\n\n",
        "\ufeffa b\nab c",
        "ab c\na b\n",
    ],
    ids=["plain", "crlf", "bom", "trailing blank lines", "bom, no version", "a part made later"],
)
def test_harmless_differences_are_read(tmp_path: Path, merges: str) -> None:
    tokenizer = Tokenizer.from_gpt2(*gpt2_style(tmp_path, merges, ["ab", "abc"]))
    assert tokenizer.encode("abcab") == [257, 256] or tokenizer.encode("abc") == [257]


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ("a b\nxy c\n", "line 2: part 'xy'"),
        ("a b\na b\n", "line 2: merge a b is given twice"),
        ("a b\nab\n", "line 2: expected two parts"),
        ("a b\na  b\n", "line 2: expected two parts"),
        ("a b\na b c\n", "line 2: expected two parts"),
        ("a b\n\u3000 a\n", "line 2: part"),
        ("a b\nb c\n", "line 2: 'bc' is not in the vocabulary"),
        (b"a b\n\xff c\n", "line 2: byte 0xFF"),
        (b"\xef\xbb\xbfa b\n\xff c\n", "line 2: byte 0xFF"),
        ("a b\n" + "a" * 1_000_000 + "\n", "line 2: expected two parts"),
        ("a b\n" + "c d\n" * 1_000_000, "line 2: 'cd' is not"),
    ],
    ids=lambda value: str(value)[:24].encode("unicode_escape").decode(),
)
def test_impossible_merges_are_named_by_line(tmp_path: Path, merges: str | bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        Tokenizer.from_gpt2(*gpt2_style(tmp_path, merges, ["ab", "abc"]))


@pytest.mark.parametrize("merges", ["", "a b\n"], ids=["empty", "cut off"])
def test_a_vocabulary_most_of_which_no_merge_makes_is_refused(tmp_path: Path, merges: str) -> None:
    tokens = [f"{left}{right}" for left in "abcdefghijklmnopq" for right in "abcdefghijklmnopq"]
    message = f"merges.txt: {bool(merges):d} merges leave {289 - bool(merges)} of 545 tokens unmade"
    with pytest.raises(FileFormatError, match=message):
        Tokenizer.from_gpt2(*gpt2_style(tmp_path, merges, tokens))


@pytest.mark.parametrize(
    ("vocab", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{", "line 1"),
        ('{"a": 1, "a": 2}', "key 'a' is given twice"),
        ('{"a": 1, "b": 1}', "id 1 belongs to 'a' and to 'b'"),
        ('{"a": -1}', "id -1"),
        ('{"a": 1.5}', "id 1.5"),
        ('{"a": true}', "id True"),
        ('{"a": 99999999}', "far beyond"),
        ('{"a": 4294967296}', "2\\^31"),
        ('{"a": 0}', "no token for byte"),
        ("[" * 100_000, "recursion depth|expected"),
        ('{"a": NaN}', "id nan"),
    ],
)
def test_impossible_vocabularies_are_named(tmp_path: Path, vocab: str, message: str) -> None:
    (tmp_path / "vocab.json").write_text(vocab, "utf-8")
    (tmp_path / "merges.txt").write_text("", "utf-8")
    with pytest.raises(FileFormatError, match=message):
        Tokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")


@pytest.mark.parametrize(
    ("rows", "message"),
    [("YQ== 0\n???? 1\n", "line 2"), ("YQ== 0\nYQ== 1\n", "line 2"), ("YQ== 0\nYg== 0\n", "id 0 belongs"),
     ("YQ==\n", "line 1"), ("YQ== -1\n", "line 1"),
     ("YQ== 999999999\n", "far beyond"), ("YQ== 0\n", "no token for byte"),
     ("YQ== 0x1\n", "line 1"), (" 0\n", "line 1")],
)  # fmt: skip
def test_impossible_ranks_are_named_by_line(tmp_path: Path, rows: str, message: str) -> None:
    (tmp_path / "x.tiktoken").write_text(rows, "utf-8")
    with pytest.raises(FileFormatError, match=message):
        Tokenizer.from_tiktoken(tmp_path / "x.tiktoken", pattern="gpt2")


def test_mutated_files_are_read_or_refused(
    tmp_path: Path, small: Tokenizer, gpt2_files: tuple[Path, Path]
) -> None:
    chance = random.Random(1)
    model = json.loads(small.to_json())["model"]
    wholes = {
        "vocab.json": json.dumps(model["vocab"]).encode(),
        "merges.txt": "".join(f"{left} {right}\n" for left, right in model["merges"]).encode(),
        "tokenizer.json": small.to_json().encode(),
    }
    for name, whole in wholes.items():
        (tmp_path / name).write_bytes(whole)
    assert Tokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt").sha256 == small.sha256
    for name, whole in wholes.items():
        for _ in range(150):
            raw = bytearray(whole)
            for _ in range(chance.randint(1, 3)):
                raw[chance.randrange(len(raw))] = chance.randrange(256)
            (tmp_path / name).write_bytes(raw)
            try:
                if name == "tokenizer.json":
                    tokenizer = Tokenizer.load(tmp_path / name)
                else:
                    tokenizer = Tokenizer.from_gpt2(tmp_path / "vocab.json", tmp_path / "merges.txt")
                Tokenizer(tokenizer.vocabulary, layer="reference").encode(TEXT)
            except ValueError:
                continue
        (tmp_path / name).write_bytes(whole)


def test_a_file_without_end_is_not_read_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_FILE_BYTES", 1000)
    with pytest.raises(FileFormatError, match="/dev/zero: more than 1000 bytes"):
        Tokenizer.load("/dev/zero")


def test_a_file_takes_the_old_ones_place_when_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    Tokenizer.from_bytes().save(tmp_path / "a.json")
    assert calls == ["fsync", "replace"]
    assert Tokenizer.load(tmp_path / "a.json").vocab_size == 257


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    (tmp_path / "a.json").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(WriteError, match=r"cannot write .*a\.json: Input/output error"):
        Tokenizer.from_bytes().save(tmp_path / "a.json")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.json", b"old")]


def test_a_pipe_or_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    """Once a file took its place: ``--out /dev/null``, typed by root, left a machine without the device."""
    pipe, tokenizer = tmp_path / "pipe", Tokenizer.from_bytes()
    os.mkfifo(pipe)
    # what is written fits into the pipe: nobody need read meanwhile, or wait for what never comes
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        tokenizer.save(pipe)
        assert pipe.is_fifo()
        assert reader.read().decode() == tokenizer.to_json()


def test_a_link_stays_and_what_it_names_is_replaced(tmp_path: Path) -> None:
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    link.symlink_to(target)
    for _ in range(2):
        Tokenizer.from_bytes().save(link)
        assert link.is_symlink()
        assert target.read_text() == Tokenizer.from_bytes().to_json()
        target.write_text("older")
