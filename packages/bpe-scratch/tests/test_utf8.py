"""The kernel that writes UTF-8 equals ``str.encode``, for every character at every place of its window."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from bpe_scratch import TextError, Tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

utf8 = pytest.importorskip("bpe_scratch.compiled.utf8", reason="Numba is not installed")

# of one, two and four bytes in Python's strings, and the first and last of each width in UTF-8
EDGES = "\0\x7f\x80\xff\u0100\u07ff\u0800\ud7ff\ue000\uffff\U00010000\U0010ffff"
# 64 characters are looked at together
LENGTHS = st.one_of(st.integers(0, 3), st.integers(61, 67), st.integers(126, 130))
runs = st.tuples(st.one_of(st.sampled_from(EDGES), st.characters(exclude_categories=["Cs"])), LENGTHS)
texts = st.lists(st.one_of(runs, LENGTHS.map(lambda n: ("a", n))), max_size=6).map(
    lambda parts: "".join(char * n for char, n in parts)
)


def written(*documents: str) -> list[bytes]:
    """What the buffer holds of each document; its margins are as they were."""
    buffer = utf8.TextBuffer(sum(map(utf8.most_bytes, documents)))
    buffer.text[utf8.PADDING :] = 0xEE
    for document in documents:
        assert buffer.has_room(document)
        buffer.append(document)
    text, bounds = buffer.text, buffer.bounds
    assert not text[: bounds[0]].any()
    return [text[a:b].tobytes() for a, b in itertools.pairwise(bounds)]


# 0x100 and 0x10000: the narrower kinds of strings; 63 to 65: the window's edge wanders through all characters
@pytest.mark.parametrize("stop", [0x100, 0x10000, 0x110000])
@pytest.mark.parametrize("between", [0, 1, 5, 12, 63, 64, 65])
def test_every_code_point(stop: int, between: int) -> None:
    chars = [chr(code) for code in range(stop) if not 0xD800 <= code < 0xE000]
    document = ("b" * between).join(chars)
    assert written(document) == [document.encode()]


@settings(max_examples=500, deadline=None)
@given(documents=st.lists(texts, min_size=1, max_size=4))
def test_any_documents(documents: list[str]) -> None:
    assert written(*documents) == [document.encode() for document in documents]


@pytest.mark.parametrize("code", [0xD800, 0xDBFF, 0xDC00, 0xDFFF], ids=hex)
@pytest.mark.parametrize("wide", ["", "é", "中", "😀"])
def test_a_lone_surrogate_is_named(code: int, wide: str) -> None:
    for before, after in itertools.product([0, 1, 62, 63, 64, 65, 127, 128, 300], [0, 1, 63, 64]):
        document = wide + "a" * before + chr(code) + wide * 9 + "a" * after
        with pytest.raises(TextError, match=f"U\\+{code:04X} at character {len(wide) + before} has"):
            written("first", document)


def test_a_refused_document_leaves_the_tokenizer_as_it_was() -> None:
    tokenizer = Tokenizer.from_bytes()
    documents = ["a" * 300_000, "é" * 70, "x\ud800", "b"]
    with pytest.raises(TextError, match=r"U\+D800 at character 1 has"):
        tokenizer.encode_to_numpy(documents)
    del documents[2]
    ids, offsets = tokenizer.encode_to_numpy(documents)
    assert np.diff(offsets).tolist() == [300_000, 140, 1]
    assert tokenizer.decode(ids) == "".join(documents)


# 1 << 18 bytes are encoded at once: documents that fill them exactly, end one short, or need more than all
@pytest.mark.parametrize(
    "size", [(1 << 16) - 1, 1 << 16, (1 << 16) + 1, (1 << 18) - 1, 1 << 18, (1 << 18) + 1]
)
@pytest.mark.parametrize("char", ["a", "é", "中", "😀"])
def test_documents_as_long_as_what_is_encoded_at_once(size: int, char: str) -> None:
    documents = ["x", char * size, "y", char * size, ""]
    ids, offsets = Tokenizer.from_bytes().encode_to_numpy(documents)
    assert np.diff(offsets).tolist() == [len(document.encode()) for document in documents]
    assert Tokenizer.from_bytes().decode(ids) == "".join(documents)


class Liar(str):
    """A text that is longer and wider than it says."""

    __slots__ = ()

    def __len__(self) -> int:
        return 0

    def isascii(self) -> bool:
        return True


@pytest.mark.parametrize("text", [np.str_("naïve 中" * 30), Liar("naïve 中" * 30)], ids=["NumPy", "liar"])
def test_subclasses_count_as_the_text_they_hold(text: str) -> None:
    tokenizer, plain = Tokenizer.from_bytes(), str.__str__(text)
    assert tokenizer.encode(text) == tokenizer.encode(plain)
    assert tokenizer.encode_batch([text, "x"]) == tokenizer.encode_batch([plain, "x"])


@pytest.mark.parametrize("other", [b"bytes", 5, None], ids=["bytes", "int", "None"])
def test_what_is_no_text_is_refused(other: Any) -> None:
    with pytest.raises(TypeError, match="str"):
        Tokenizer.from_bytes().encode(other)
