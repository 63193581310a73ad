"""Decoding equals Python's own, byte for byte and character for character, in every layer."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from bpe_oracles import LAYERS
from bpe_scratch import Tokenizer
from byte_tokenizers import PAD, any_block, byte_ids, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

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


# more than are looked at ahead, and cut off within a character there
@pytest.mark.parametrize("number", [340, 341, 342, 343, 2000])
@pytest.mark.parametrize("before", ["", "a"])
@any_block
def test_long_runs_beyond_ascii(
    monkeypatch: pytest.MonkeyPatch, block: int | None, number: int, before: str
) -> None:
    pytest.importorskip("numba")
    tokenizer = byte_tokenizer("compiled", block)
    text = before + "中" * number
    raw = text.encode()
    for cut in (raw[:-1] + b"a", raw[:-1]):
        assert tokenizer.decode(byte_ids(cut)) == cut.decode("utf-8", errors="replace")
    monkeypatch.setattr("bpe_scratch.compiled.decoder.CompiledDecoder._copy", None)
    assert tokenizer.decode(byte_ids(raw)) == text


def test_ascii_within_a_character(layer: Any) -> None:
    tokenizer = byte_tokenizer(layer)
    # without the "a" it would be a character
    raw = PAD + b"\xe4\xb8" + b"a" + b"\xad" + PAD
    assert tokenizer.decode(byte_ids(raw)) == raw.decode("utf-8", errors="replace")


def test_the_longest_token_finishes_a_character() -> None:
    pytest.importorskip("numba")
    from bpe_scratch.compiled.decoder import CompiledDecoder

    decoder = CompiledDecoder([b"\xf0\x9f\x98", b"\x80" + b"\xc3\xa9" * 20_000])
    assert decoder.decode_text([0, 1] * 2) == ("😀" + "é" * 20_000) * 2
