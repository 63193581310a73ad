"""Ids equal those of tiktoken, of Hugging Face and of the reference, in every layer."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import threading
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from bpe_oracles import LAYERS, as_hugging_face, as_tiktoken, read_wiki
from bpe_scratch import TextError, Tokenizer, TokenizerError, Vocabulary, encoders, reference, train
from bpe_scratch.patterns import PATTERNS, splitter
from hypothesis import given, settings
from hypothesis import strategies as st

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)


def with_layer(tokenizer: Tokenizer, layer: str) -> Tokenizer:
    return Tokenizer(
        tokenizer.vocabulary, pattern=tokenizer.pattern, special_tokens=tokenizer.special_tokens, layer=layer
    )


def encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    ids, offsets = tokenizer.encode_to_numpy(texts)
    return [ids[start:stop].tolist() for start, stop in pairwise(offsets)]


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    words = (
        "the cat sat on the mat, aaaa aaa aaaaaaa; that's 1999's naïve café 中文中文 don't DON'T \n\n  x\t"
    )
    return train([words * 7, "hello hello"], 256 + 90 + 1)


def test_hello_world(gpt2: Tokenizer) -> None:
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.decode([15496, 995]) == "Hello world"


def test_ids_of_real_text_equal_tiktoken_and_hugging_face(
    gpt2: Tokenizer, layer: str, shakespeare: str, wiki: list[str]
) -> None:
    texts = [shakespeare[:200_000], *wiki[:40]]
    ids, offsets = with_layer(gpt2, layer).encode_to_numpy(texts)
    assert ids.dtype == np.uint16
    want = as_tiktoken(gpt2).encode_ordinary_batch(texts, num_threads=1)
    assert ids.tolist() == [i for part in want for i in part]
    assert np.diff(offsets).tolist() == [len(part) for part in want]
    assert [e.ids for e in as_hugging_face(gpt2).encode_batch_fast(texts)] == want


@pytest.mark.slow
def test_ids_of_the_whole_corpus_equal_tiktoken(gpt2: Tokenizer) -> None:
    texts = read_wiki("train")
    ids, _ = gpt2.encode_to_numpy(texts)
    want = as_tiktoken(gpt2).encode_ordinary_batch(texts, num_threads=1)
    assert np.array_equal(ids, np.concatenate([np.array(part, np.uint16) for part in want]))


def test_every_code_point_equals_tiktoken_and_hugging_face(gpt2: Tokenizer) -> None:
    chars = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    texts = ["a".join(chars[i : i + 512]) for i in range(0, len(chars), 512)]
    ids, _ = gpt2.encode_to_numpy(texts)
    assert ids.tolist() == [
        i for part in as_tiktoken(gpt2).encode_ordinary_batch(texts, num_threads=1) for i in part
    ]
    assert ids.tolist() == [i for e in as_hugging_face(gpt2).encode_batch_fast(texts) for i in e.ids]


@settings(max_examples=300, deadline=None)
@given(text=any_text)
def test_ids_of_any_text_equal_tiktoken_and_hugging_face(gpt2: Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert ids == as_tiktoken_once(gpt2).encode_ordinary(text)
    assert ids == as_hugging_face_once(gpt2).encode(text).ids
    assert gpt2.decode(ids) == text


@pytest.mark.slow
@settings(max_examples=100_000, deadline=None)
@given(text=any_text)
def test_ids_of_any_text_equal_tiktoken_and_hugging_face_at_length(gpt2: Tokenizer, text: str) -> None:
    ids = gpt2.encode(text)
    assert ids == as_tiktoken_once(gpt2).encode_ordinary(text)
    assert ids == as_hugging_face_once(gpt2).encode(text).ids
    assert gpt2.decode(ids) == text


_oracles: dict[str, Any] = {}


def as_tiktoken_once(tokenizer: Tokenizer) -> Any:
    if "tiktoken" not in _oracles:
        _oracles["tiktoken"] = as_tiktoken(tokenizer)
    return _oracles["tiktoken"]


def as_hugging_face_once(tokenizer: Tokenizer) -> Any:
    if "hugging face" not in _oracles:
        _oracles["hugging face"] = as_hugging_face(tokenizer)
        # or else it takes the text of a special token for the token
        _oracles["hugging face"].encode_special_tokens = True
    return _oracles["hugging face"]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("layer", LAYERS)
@settings(max_examples=60, deadline=None)
@given(text=any_text | st.text("ab 1'st中\n", max_size=60))
def test_layers_equal_the_reference(small: Tokenizer, pattern: str, layer: str, text: str) -> None:
    known = small.vocabulary
    pieces = [piece.encode() for piece in splitter(pattern)(text)]
    want = [i for piece in pieces for i in reference.encode_piece(piece, known.byte_ids, known.pairs)]
    tokenizer = with_layer(Tokenizer(known, pattern=pattern), layer)
    assert tokenizer.encode(text) == want


# 15/16: the longest key held in a slot and the first in the arena; 255/256: the longest that is remembered
@pytest.mark.parametrize("size", [1, 7, 8, 9, 15, 16, 17, 23, 24, 25, 63, 254, 255, 256, 257])
def test_pieces_at_the_edges_of_the_tables(small: Tokenizer, layer: str, size: int) -> None:
    known = small.vocabulary
    tokenizer = with_layer(Tokenizer(known, pattern="none"), layer)
    for piece in ("a" * size, "theca" * size, "é" * size, "q" * size + "z", "q" * size + "y"):
        want = reference.encode_piece(piece.encode(), known.byte_ids, known.pairs)
        # new, and then known
        assert tokenizer.encode(piece) == tokenizer.encode(piece) == want


# tokens longer than what is remembered: once merged instead of taken whole
@pytest.mark.parametrize("size", [255, 256, 300])
def test_a_piece_that_is_a_token_is_taken_whole_whatever_its_length(layer: str, size: int) -> None:
    bytes_only = Tokenizer.from_bytes().vocabulary
    known = Vocabulary([*bytes_only.tokens, b"x" * size], [], whole_pieces=True)
    assert Tokenizer(known, pattern="none", layer=layer).encode("x" * size) == [256]


def test_two_ids_for_the_same_bytes_are_refused() -> None:
    with pytest.raises(TokenizerError, match="same bytes"):
        Vocabulary([*Tokenizer.from_bytes().vocabulary.tokens, b"x"], [])


def test_the_cache_is_bounded_and_forgetting_changes_nothing(
    small: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = pytest.importorskip("bpe_scratch.compiled.encoder")
    monkeypatch.setattr(encoder, "_LOG", 17)
    monkeypatch.setattr(encoder, "_ARENA", 1 << 16)
    texts = [f"w{i:x}q {'long' * 5}{i}" for i in range(150_000)]
    compiled = with_layer(small, "auto")
    first, _ = compiled.encode_to_numpy(texts)
    assert compiled._encoder._state["slots_used"] <= 3 << 15
    assert compiled._encoder._state["arena_size"] <= 1 << 17
    monkeypatch.undo()
    again, _ = with_layer(small, "auto").encode_to_numpy(texts)
    assert np.array_equal(first, again)


def test_threads_may_share_a_tokenizer(small: Tokenizer, layer: str) -> None:
    texts = [f"the cat {i} sat on {'mat' * (i % 50)}" for i in range(500)] + ["", "x"]
    tokenizer = with_layer(small, layer)
    want = encode_all(tokenizer, texts)
    assert want == [tokenizer.encode(text) for text in texts]
    found: list[list[list[int]]] = []
    runners = [threading.Thread(target=lambda: found.append(encode_all(tokenizer, texts))) for _ in range(8)]
    for runner in runners:
        runner.start()
    for runner in runners:
        runner.join()
    assert found == [want] * 8


def test_nothing_gives_nothing(small: Tokenizer, layer: str) -> None:
    tokenizer = with_layer(small, layer)
    assert tokenizer.encode("") == []
    assert encode_all(tokenizer, []) == []
    ids, offsets = tokenizer.encode_to_numpy(["", ""])
    assert ids.tolist() == []
    assert offsets.tolist() == [0, 0, 0]
    assert tokenizer.decode([]) == ""


def test_special_tokens_are_ordinary_text_unless_allowed(gpt2: Tokenizer, layer: str) -> None:
    tokenizer = with_layer(gpt2, layer)
    text = "a<|endoftext|>b"
    assert 50256 not in tokenizer.encode(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode(text, allowed_special={"<|endoftext|>"}) == [64, 50256, 65]
    assert tokenizer.encode(text, allowed_special="all") == [64, 50256, 65]
    with pytest.raises(TypeError, match="is one text: give a set"):
        tokenizer.encode(text, allowed_special="<|endoftext|>")
    with pytest.raises(TokenizerError, match=r"known: <\|endoftext\|>"):
        tokenizer.encode(text, allowed_special={"<pad>"})
    with pytest.raises(TextError, match="at character 15 has"):
        tokenizer.encode(f"{text}\ud800", allowed_special="all")


def test_all_special_tokens_of_none_change_nothing(gpt2: Tokenizer, layer: str) -> None:
    tokenizer = Tokenizer(gpt2.vocabulary, layer=layer)
    text = "Hello world"
    assert tokenizer.encode(text, allowed_special="all") == tokenizer.encode(text) == [15496, 995]


@pytest.mark.parametrize(("text", "position"), [("\ud800", 0), ("ab\udfff", 2), ("中😀\ud83d!", 2)])
def test_lone_surrogates_are_refused_by_position(
    small: Tokenizer, layer: str, text: str, position: int
) -> None:
    tokenizer = with_layer(small, layer)
    for work in (
        tokenizer.encode,
        lambda t: tokenizer.encode_to_numpy([t]),
        lambda t: train([t], 300),
    ):
        with pytest.raises(TextError, match=f"at character {position} has"):
            work(text)


def test_a_stream_emits_whole_characters_only(gpt2: Tokenizer) -> None:
    text = "naïve 中文 😀👩‍👩‍👧 é"
    stream = gpt2.stream()
    pieces = [stream.feed(index) for index in gpt2.encode(text)]
    assert "�" not in "".join(pieces)
    assert "".join(pieces) == text
    assert stream.flush() == ""
    assert stream.feed(gpt2.vocabulary.byte_ids[0xE4]) == ""
    assert stream.flush() == "�"


class Liar(str):
    """A text that is longer and wider than it says."""

    __slots__ = ()

    def __len__(self) -> int:
        return 0

    def isascii(self) -> bool:
        return True

    def encode(self, *_: Any) -> bytes:
        return b""


@pytest.mark.parametrize("text", [np.str_("naïve 中" * 30), Liar("naïve 中" * 30)], ids=["NumPy", "liar"])
def test_subclasses_count_as_the_text_they_hold(text: str) -> None:
    tokenizer, plain = Tokenizer.from_bytes(), str.__str__(text)
    assert tokenizer.encode(text) == tokenizer.encode(plain)
    assert encode_all(tokenizer, [text, "x"]) == encode_all(tokenizer, [plain, "x"])


@pytest.mark.parametrize("other", [b"bytes", 5, None], ids=["bytes", "int", "None"])
def test_what_is_no_text_is_refused(other: Any) -> None:
    with pytest.raises(TypeError, match="str"):
        Tokenizer.from_bytes().encode(other)


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


def test_a_refused_document_leaves_the_tokenizer_as_it_was() -> None:
    tokenizer = Tokenizer.from_bytes()
    documents = ["a" * 300_000, "é" * 70, "x\ud800", "b"]
    with pytest.raises(TextError, match=r"U\+D800 at character 1 has"):
        tokenizer.encode_to_numpy(documents)
    del documents[2]
    ids, offsets = tokenizer.encode_to_numpy(documents)
    assert np.diff(offsets).tolist() == [300_000, 140, 1]
    assert tokenizer.decode(ids) == "".join(documents)


def test_the_reference_remembers_short_pieces_alone(small: Tokenizer) -> None:
    plain = encoders.PlainEncoder(small.vocabulary, "none")
    for text in ("a" * 64, "a" * 65):
        assert plain.encode(text) == plain.encode(text) == small.encode(text)
    assert plain._short.cache_info()[:2] == (1, 1)


def test_a_full_disk_only_means_compiling_again(monkeypatch: pytest.MonkeyPatch) -> None:
    caching, kernel = (
        pytest.importorskip("numba.core.caching"),
        importlib.import_module("bpe_scratch.compiled.kernel"),
    )
    saves: list[object] = []

    def fail(_: object, signature: object, data: object) -> None:
        saves.append(signature)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(caching.FunctionCache, "save_overload", fail)
    assert kernel.kernel(doubled)(2) == 4
    assert len(saves) == 1


# once a signal that came while LLVM asked Python for code was a segmentation fault
def test_a_signal_while_a_kernel_is_loaded_is_handled_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    caching = pytest.importorskip("numba.core.caching")
    kernel = importlib.import_module("bpe_scratch.compiled.kernel")
    loads: list[object] = []

    def interrupt(_: object, signature: object, context: object) -> None:
        signal.raise_signal(signal.SIGINT)
        loads.append(signature)

    monkeypatch.setattr(caching.FunctionCache, "load_overload", interrupt)
    monkeypatch.setattr(caching.FunctionCache, "save_overload", lambda *_: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            kernel.kernel(doubled)(2)
        assert len(loads) == 1
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def doubled(number: int) -> int:
    return 2 * number
