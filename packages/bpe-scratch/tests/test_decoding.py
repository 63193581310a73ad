"""Decoding equals Python's own, byte for byte and character for character, whatever the ids come in."""

from __future__ import annotations

import enum
import itertools
import threading
from typing import Any

import numpy as np
import pytest
from bpe_scratch import TokenIdError, Tokenizer, decoders
from byte_tokenizers import BYTES, byte_ids
from hypothesis import given, settings
from hypothesis import strategies as st

# each kind of fault in the Unicode standard's table 3-7, and characters at the edges of every width
FAULTS = [
    b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf",
    b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xff", b"\xc3", b"\xc3A", b"\xe4",
    b"\xe4\xb8", b"\xe4\xb8A", b"\xf0\x9f\x98", b"\xf0\x9f\x98A",
]  # fmt: skip
EDGES = ["\x7f", "\x80", "\xff", "\u0100", "\u07ff", "\u0800", "\ud7ff", "\ue000", "\uffff", "\U0010ffff"]
any_parts = st.sampled_from([text.encode() for text in EDGES] + FAULTS) | st.binary(max_size=5)


@settings(max_examples=150, deadline=None)
@given(parts=st.lists(any_parts, max_size=12))
def test_bytes_decode_as_python_decodes_them(parts: list[bytes]) -> None:
    raw = b"".join(parts)
    ids, want = byte_ids(raw), raw.decode("utf-8", errors="replace")
    for form in (ids, np.array(ids, np.uint16), np.array(ids, np.uint32)):
        assert BYTES.decode_bytes(form) == raw
        assert BYTES.decode(form) == want
    stream = BYTES.stream()
    pieces = [stream.feed(index) for index in ids]
    assert "".join(pieces) + stream.flush() == want


# around the number of ids that are looked up at once
@pytest.mark.parametrize("number", [1, decoders._BLOCK - 1, decoders._BLOCK, decoders._BLOCK + 1])
def test_blocks_join_within_a_character(number: int) -> None:
    raw = "中".encode() * number + b"\xe4\xb8"
    assert BYTES.decode(byte_ids(raw)) == "中" * number + "\ufffd"


def test_every_id_in_every_form(gpt2: Tokenizer) -> None:
    known = [gpt2.decode_bytes([index]) for index in range(gpt2.vocab_size)]
    assert known[:-1] == list(gpt2.vocabulary.tokens)
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
        assert gpt2.decode_bytes(form) == raw


# 2^16 + 64 and 2^32 + 64 would be known ids if cut to fewer bits, -1 if counted from the end
@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        (dtype, bad)
        for dtype in ("i2", "u2", "i4", "u4", "i8", "u8")
        for bad in (-1, -257, 256, 1 << 15, (1 << 16) + 64, (1 << 31) + 64, (1 << 32) + 64, (1 << 63) + 64)
        if np.iinfo(dtype).min <= bad <= np.iinfo(dtype).max
    ],
)
@pytest.mark.parametrize("before", [3, 20000])
def test_unknown_ids_in_arrays_are_named(bad: int, dtype: str, before: int) -> None:
    ids = np.array([64] * before + [bad, 1], dtype=dtype)
    for form in (ids, ids.tolist()):
        for work in (BYTES.decode, BYTES.decode_bytes):
            with pytest.raises(TokenIdError, match=f"id {bad} at position {before} is not in"):
                work(form)


@pytest.mark.parametrize("bad", [-1, 50257, 1 << 31, 1 << 64, -(1 << 70), 1.0, 1.5, "1", None])
@pytest.mark.parametrize("before", [0, 5, 20000])
def test_unknown_ids_in_lists_are_named(gpt2: Tokenizer, bad: object, before: int) -> None:
    with pytest.raises(TokenIdError, match=f"position {before} "):
        gpt2.decode([64] * before + [bad])  # type: ignore[list-item]


def test_gaps_are_unknown_in_every_form() -> None:
    tokenizer = Tokenizer(BYTES.vocabulary, special_tokens={"<x>": 65535})
    assert tokenizer.decode(np.full(100, 65535, np.uint16)) == "<x>" * 100
    # -1 in two bytes without a sign would be 65535
    for bad, dtype in ((300, np.uint16), (300, np.int64), (-1, np.int16), (-1, np.int32)):
        ids = np.array([64] * 100 + [bad], dtype=dtype)
        for form in (ids, ids.tolist()):
            with pytest.raises(TokenIdError, match=f"id {bad} at position 100 is not in"):
                tokenizer.decode(form)


@pytest.mark.parametrize("ids", [np.zeros((2, 100), np.int64), np.zeros(100), np.zeros(100, bool)])
def test_other_arrays_are_refused(ids: Any) -> None:
    with pytest.raises(TokenIdError, match="not a row of integers"):
        BYTES.decode(ids)


class Level(enum.IntEnum):
    TEN = 10


class Backwards(list):  # type: ignore[type-arg]
    def __iter__(self) -> Any:
        return reversed(self)


def test_what_counts_as_an_integer_does() -> None:
    mixed: list[Any] = [True, Level.TEN, np.int64(10), np.uint8(1), False] * 50
    assert BYTES.decode(mixed) == BYTES.decode([1, 10, 10, 1, 0] * 50)
    numbers = list(range(60)) * 3
    # a class of its own may give other numbers than it holds
    assert BYTES.decode(Backwards(numbers)) == BYTES.decode(numbers[::-1])


def test_threads_decode_the_same(gpt2: Tokenizer) -> None:
    texts = [f"the {'né' * i} 中 {'😀' * (i % 3)} " * 300 for i in range(8)]
    ids, offsets = gpt2.encode_to_numpy(texts)
    batch = [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    found: list[list[str]] = []
    work = lambda: found.append([gpt2.decode(part) for part in batch])  # noqa: E731
    runners = [threading.Thread(target=work) for _ in range(6)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert found == [texts] * 6
