"""Decoding equals Python's own, byte for byte and character for character, in every layer and form of ids."""

from __future__ import annotations

import enum
import itertools
import sys
import threading
import tracemalloc
from typing import Any

import numpy as np
import pytest
from bpe_oracles import LAYERS
from bpe_scratch import TokenIdError, Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

# more ids than are joined without a kernel
PAD = b"x" * 70
# each kind of fault in the Unicode standard's table 3-7, and characters at the edges of every width
FAULTS = [
    b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf",
    b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xc3", b"\xc3A", b"\xe4",
    b"\xe4\xb8", b"\xe4\xb8A", b"\xf0\x9f\x98", b"\xf0\x9f\x98A",
]  # fmt: skip
EDGES = [
    "\x7f", "\x80", "\xff", "\u0100", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U00010000",
    "\U0010ffff",
]  # fmt: skip
RUNS = ["a", "b" * 63, "c" * 64, "d" * 65, "é" * 3, "中" * 40, "😀" * 40]
good_parts = st.sampled_from([text.encode() for text in (*EDGES, *RUNS)])
any_parts = good_parts | st.sampled_from(FAULTS) | st.binary(max_size=5)


def byte_ids(raw: bytes) -> list[int]:
    table = Tokenizer.from_bytes().vocabulary.byte_ids
    return [table[byte] for byte in raw]


def byte_tokenizer(layer: Any = "auto", block: int | None = None) -> Tokenizer:
    """A tokenizer of single bytes, decoding in blocks of so many or of the usual number."""
    tokenizer = Tokenizer(Tokenizer.from_bytes().vocabulary, layer=layer)
    with pytest.MonkeyPatch.context() as patch:
        if block:
            patch.setattr(pytest.importorskip("bpe_scratch.compiled.decoder"), "_BLOCK", block)
        # tables are made when they are first needed
        tokenizer.decode(byte_ids(PAD))
    return tokenizer


# 8: characters are cut off at the end of nearly every block
any_block = pytest.mark.parametrize("block", [None, 8])


@any_block
@pytest.mark.parametrize("layer", LAYERS)
@settings(max_examples=150, deadline=None)
@given(parts=st.lists(any_parts, max_size=12))
def test_bytes_decode_as_python_decodes_them(block: int | None, layer: Any, parts: list[bytes]) -> None:
    tokenizer = byte_tokenizer(layer, block)
    raw = PAD + b"".join(parts)
    ids = byte_ids(raw)
    assert tokenizer.decode_bytes(ids) == raw
    want = raw.decode("utf-8", errors="replace")
    for form in (ids, np.array(ids, np.uint16), np.array(ids, np.uint32)):
        text = tokenizer.decode(form)
        assert text == want
        # equal strings of Python have equal widths, or comparing and hashing them would fail
        assert sys.getsizeof(text) == sys.getsizeof(want.encode("utf-32").decode("utf-32"))
        assert hash(text) == hash(want)


@pytest.mark.parametrize("layer", LAYERS)
@settings(max_examples=50, deadline=None)
@given(parts=st.lists(any_parts, max_size=12))
def test_a_stream_is_the_same_as_all_at_once(layer: Any, parts: list[bytes]) -> None:
    tokenizer = byte_tokenizer(layer)
    raw, stream = PAD + b"".join(parts), tokenizer.stream()
    pieces = [stream.feed(index) for index in byte_ids(raw)]
    assert "".join(pieces) + stream.flush() == raw.decode("utf-8", errors="replace")


@any_block
def test_no_valid_character_is_left_to_python(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("bpe_scratch.compiled.decoder")
    monkeypatch.setattr(module.CompiledDecoder, "_copy", None)
    tokenizer = byte_tokenizer("compiled", block)
    points = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for start in range(0, len(points), 50_000):
        text = "a".join(points[start : start + 50_000])
        ids = np.array(byte_ids(text.encode()), dtype=np.uint16)
        assert tokenizer.decode(ids) == text


@any_block
def test_sequences_at_the_edges_of_validity(block: int | None) -> None:
    tokenizer = byte_tokenizer(block=block)
    tails = [
        b"",
        *(bytes([third]) for third in (0x7F, 0x80, 0xBF, 0xC0)),
        b"\x80\x7f",
        b"\x80\x80",
        b"\xbf\xbf",
    ]
    for lead in (0x7F, 0x80, 0xC1, 0xC2, 0xDF, 0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xF0, 0xF1, 0xF4, 0xF5, 0xFF):
        for second in (0x00, 0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF):
            for tail in tails:
                raw = PAD + bytes([lead, second]) + tail
                assert tokenizer.decode(byte_ids(raw)) == raw.decode("utf-8", errors="replace"), raw


# the width of Python's string is that of the widest character, wherever it stands
@pytest.mark.parametrize("wide", ["", "é", "ÿ", "Ā", "中", "😀"])
@pytest.mark.parametrize("place", [0, 32_767, 32_768, 32_769, 99_999])
def test_long_texts_of_every_width(gpt2: Tokenizer, layer: Any, wide: str, place: int) -> None:
    tokenizer = Tokenizer(gpt2.vocabulary, layer=layer)
    text = "ab cde fgh " * 9091
    text = text[:place] + wide + text[place:]
    ids, _ = tokenizer.encode_to_numpy([text])
    for form in (ids, ids.tolist()):
        found = tokenizer.decode(form)
        assert found == text
        assert sys.getsizeof(found) == sys.getsizeof(text)


def test_every_id_in_every_form(gpt2: Tokenizer, layer: Any) -> None:
    tokenizer = Tokenizer(gpt2.vocabulary, special_tokens=gpt2.special_tokens, layer=layer)
    known = [gpt2.token_bytes(index) for index in range(gpt2.vocab_size)]
    ids = np.arange(gpt2.vocab_size)[::-1]
    raw = b"".join(known[::-1])
    kept = ids.astype(np.uint16)
    kept.flags.writeable = False
    unaligned = np.frombuffer(b"." + ids.astype(np.uint32).tobytes(), dtype=np.uint8)[1:].view(np.uint32)
    forms: list[Any] = [
        ids, kept, unaligned, ids.tolist(), tuple(ids.tolist()), list(ids), iter(ids.tolist()),
        *(ids.astype(kind) for kind in ("u4", "i4", "u8", ">u2", ">i4")),
        np.repeat(ids.astype(np.uint16), 2)[::2],
    ]  # fmt: skip
    for form in forms:
        assert tokenizer.decode_bytes(form) == raw
    for form in forms[:-1]:
        assert tokenizer.decode(iter(ids.tolist()) if form is forms[6] else form) == raw.decode(
            "utf-8", "replace"
        )


# 2^16 + 64 and 2^32 + 64 would be known ids if they were cut to fewer bits
@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        (dtype, bad)
        for dtype in ("i2", "u2", "i4", "u4", "i8", "u8")
        for bad in (-1, 256, (1 << 15), (1 << 16) + 64, (1 << 31) + 64, (1 << 32) + 64, (1 << 63) - 1)
        if np.iinfo(dtype).min <= bad <= np.iinfo(dtype).max
    ],
)
@pytest.mark.parametrize("before", [3, 500])
def test_unknown_ids_in_arrays_are_named(layer: Any, bad: int, dtype: str, before: int) -> None:
    tokenizer = byte_tokenizer(layer)
    ids = np.array([64] * before + [bad, 1], dtype=dtype)
    for form in (ids, ids.tolist()):
        for work in (tokenizer.decode, tokenizer.decode_bytes):
            with pytest.raises(TokenIdError, match=f"id {bad} at position {before} is not in"):
                work(form)


def test_gaps_are_unknown_in_every_form(layer: Any) -> None:
    vocabulary = Tokenizer.from_bytes().vocabulary
    tokenizer = Tokenizer(vocabulary, special_tokens={"<x>": 65535}, layer=layer)
    assert tokenizer.decode(np.full(100, 65535, np.uint16)) == "<x>" * 100
    # -1 in two bytes without a sign would be 65535
    for bad, dtype in ((300, np.uint16), (300, np.int64), (-1, np.int16), (-1, np.int32)):
        ids = np.array([64] * 100 + [bad], dtype=dtype)
        for form in (ids, ids.tolist()):
            with pytest.raises(TokenIdError, match=f"id {bad} at position 100 is not in"):
                tokenizer.decode(form)


@pytest.mark.parametrize("ids", [np.zeros((2, 100), np.int64), np.zeros(100), np.zeros(100, bool)])
def test_other_arrays_are_refused(layer: Any, ids: Any) -> None:
    tokenizer = byte_tokenizer(layer)
    with pytest.raises(TokenIdError, match="not a row of integers"):
        tokenizer.decode(ids)


class Level(enum.IntEnum):
    TEN = 10


class Backwards(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return reversed(self)


def test_what_counts_as_an_integer_does(layer: Any) -> None:
    tokenizer = byte_tokenizer(layer)
    mixed: list[Any] = [True, Level.TEN, np.int64(10), np.uint8(1), False] * 50
    assert tokenizer.decode(mixed) == tokenizer.decode([1, 10, 10, 1, 0] * 50)
    numbers = list(range(60)) * 3
    # a class of its own may give other numbers than it holds
    assert tokenizer.decode(Backwards(numbers)) == tokenizer.decode(numbers[::-1])


@pytest.mark.parametrize("size", [1, 14, 15, 16, 17, 255, 256, 257, 40_000])
@pytest.mark.parametrize("number", [1, 70, 5000])
def test_tokens_of_every_length(layer: Any, size: int, number: int) -> None:
    special = {"é" * (size // 2) + "s" * (size % 2): 256, "b" * size: 260}
    vocabulary = Tokenizer.from_bytes().vocabulary
    tokenizer = Tokenizer(vocabulary, special_tokens=special, layer=layer)
    ids = [64, 256] * number + [260] * (number // 50 + 1)
    text = tokenizer.decode([64]) + tokenizer.decode([256])
    want = text * number + "b" * size * (number // 50 + 1)
    assert tokenizer.decode(ids) == want
    assert tokenizer.decode_bytes(np.array(ids)) == want.encode()


def test_nothing_is_written_beyond_the_end() -> None:
    pytest.importorskip("numba")
    from bpe_scratch.compiled.decoder import CompiledDecoder
    from bpe_scratch.compiled.decoding import copy_tokens

    tokens = [b"a", b"bc", b"d" * 15, b"e" * 16, b"f" * 40]
    decoder = CompiledDecoder(tokens)
    for last in range(5):
        for number in (1, 2, 9):
            ids = np.array([last] * number, dtype=np.uint16)
            raw = tokens[last] * number
            room = np.full(len(raw) + 128, 0xEE, dtype=np.uint8)
            place = room.ctypes.data + 64
            copy_tokens(ids.ctypes.data, True, number, *decoder._tables, place, len(raw))
            assert room.tobytes() == b"\xee" * 64 + raw + b"\xee" * 64


def test_a_list_that_became_shorter_is_not_read_beyond_its_end() -> None:
    pytest.importorskip("numba")
    from bpe_scratch.compiled.decoder import CompiledDecoder
    from bpe_scratch.compiled.decoding import measure_list

    decoder = CompiledDecoder([b"a", b"bc"])
    ids, out = [0, 1, 1], np.zeros(10, dtype=np.uint16)
    assert measure_list(id(ids), True, 10, *decoder._sums, out.ctypes.data)[3] == 3
    assert out.tolist() == [0, 1, 1] + [0] * 7


def test_unfinished_strings_are_given_back(layer: Any) -> None:
    tokenizer = byte_tokenizer(layer)
    good, bad = (np.array(byte_ids(b"a" * 200_000 + end), np.uint16) for end in (b"", b"\xff"))
    # compiling is slow while memory is traced
    assert tokenizer.decode(good) + "\ufffd" == tokenizer.decode(bad)
    tracemalloc.start()
    for ids in (good, bad):
        tokenizer.decode(ids)
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(20):
            tokenizer.decode(ids)
        assert tracemalloc.get_traced_memory()[0] - before < 100_000
    tracemalloc.stop()


def test_threads_decode_the_same(gpt2: Tokenizer, layer: Any) -> None:
    tokenizer = Tokenizer(gpt2.vocabulary, layer=layer)
    texts = [f"the {'né' * i} 中 {'😀' * (i % 3)} " * 300 for i in range(8)]
    ids, offsets = tokenizer.encode_to_numpy(texts)
    batch = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    found: list[list[str]] = []
    runners = [threading.Thread(target=lambda: found.append(tokenizer.decode_batch(batch))) for _ in range(6)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert found == [texts] * 6
