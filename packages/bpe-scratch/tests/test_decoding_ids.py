"""Ids are taken in every form, and what is no id is named."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest
from bpe_scratch import TokenIdError, Tokenizer
from byte_tokenizers import byte_tokenizer


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


def test_a_list_that_became_shorter_is_not_read_beyond_its_end() -> None:
    pytest.importorskip("numba")
    from bpe_scratch.compiled.decoder import CompiledDecoder

    decoder = CompiledDecoder([b"a", b"bc"])
    ids, out = [0, 1, 1], np.zeros(10, dtype=np.uint16)
    assert decoder._kernels.measure_list(id(ids), out.view(np.uint8), True, 10, *decoder._sums)[3] == 3
    assert out.tolist() == [0, 1, 1] + [0] * 7
