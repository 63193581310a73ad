"""Merges equal the reference's and Hugging Face's, whatever the layer, the processes and the hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec

import pytest
from bpe_oracles import LAYERS, hugging_face_merges, our_merges, read_wiki
from bpe_scratch import (
    PATTERNS,
    Tokenizer,
    TokenizerError,
    count_words,
    incremental,
    reference,
    train,
    train_from_counts,
)
from bpe_scratch.array_counting import count_pieces
from bpe_scratch.patterns import splitter
from bpe_scratch.training import BYTE_IDS
from hypothesis import given, settings
from hypothesis import strategies as st


def pairs_of(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    return [(left, right) for left, right, _ in tokenizer.vocabulary.merges]


@pytest.mark.parametrize("layer", LAYERS)
@settings(max_examples=150, deadline=None)
@given(documents=st.lists(st.text("aab c1'é\n", max_size=60), max_size=8), least=st.integers(1, 3))
def test_layers_learn_what_the_reference_learns(layer: str, documents: list[str], least: int) -> None:
    words = count_words(documents, "gpt2", layer=layer)
    want = reference.train_merges(words, BYTE_IDS, 40, least)
    tokenizer = train(documents, 256 + 40, special_tokens=(), min_frequency=least, layer=layer)
    assert pairs_of(tokenizer) == want


# one or two letters and small counts: nothing but ties and overlaps
@settings(max_examples=300, deadline=None)
@given(
    words=st.dictionaries(
        st.text("ab", min_size=1, max_size=12).map(str.encode), st.integers(1, 3), max_size=9
    ),
    least=st.integers(1, 3),
)
def test_every_trainer_breaks_ties_as_the_reference_does(words: dict[bytes, int], least: int) -> None:
    want = reference.train_merges(words, BYTE_IDS, 30, least)
    assert incremental.train_merges(words, BYTE_IDS, 30, least) == want
    for layer in ["arrays", *(["compiled"] if find_spec("numba") else [])]:
        tokenizer = train_from_counts(words, 286, special_tokens=(), min_frequency=least, layer=layer)
        assert pairs_of(tokenizer) == want, layer


# long runs: occurrences of (a, a) overlap, and new tokens stand side by side
@pytest.mark.parametrize(
    "text", ["a" * 1000, "ab" * 700, "aab" * 500, "a" * 37 + " " + "a" * 12, "abcabcab" * 90]
)
def test_repeated_letters(layer: str, text: str) -> None:
    words = {text.encode(): 3, text[:50].encode(): 2}
    want = reference.train_merges(words, BYTE_IDS, 30, 2)
    tokenizer = train_from_counts(words, 286, special_tokens=(), layer=layer)
    assert pairs_of(tokenizer) == want


def test_merges_equal_hugging_face(layer: str, shakespeare: str) -> None:
    documents = [shakespeare[i : i + 5000] for i in range(0, 300_000, 5000)]
    want = hugging_face_merges(documents, 1500)
    assert our_merges(train(documents, 256 + 1500, special_tokens=(), layer=layer)) == want


@pytest.mark.slow
@pytest.mark.parametrize("share", [5, 1], ids=["20MB", "100MB"])
def test_merges_of_a_large_corpus_equal_hugging_face(share: int) -> None:
    documents = read_wiki("train")[::share]
    want = hugging_face_merges(documents, 32_000)
    for layer in ["arrays", *(["compiled"] if find_spec("numba") else [])]:
        assert our_merges(train(documents, 256 + 32_000, special_tokens=(), layer=layer)) == want, layer


@pytest.mark.parametrize("pattern", PATTERNS)
def test_counts_are_the_same_in_both_layers(pattern: str, wiki: list[str]) -> None:
    pytest.importorskip("numba")
    documents = [*wiki[:6], "中文 text's \r\n\r\n 12345"]
    assert count_words(documents, pattern, layer="compiled") == count_words(
        documents, pattern, layer="arrays"
    )


def test_processes_give_the_same_file(wiki: list[str], layer: str) -> None:
    alone = train(wiki[:12], 600, layer=layer)
    assert train(wiki[:12], 600, layer=layer, workers=2).to_json() == alone.to_json()


def test_hash_seed_gives_the_same_file(layer: str) -> None:
    code = (
        "from bpe_scratch import train;"
        f"print(train(['the cat sat on the mat', 'tac eht tas no eht tam'] * 3, 300, layer={layer!r}).sha256)"
    )
    found = set()
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        found.add(
            subprocess.run(
                [sys.executable, "-c", code], env=environment, capture_output=True, check=True
            ).stdout
        )
    assert len(found) == 1


@pytest.mark.parametrize("scale", [1 << 31, 1 << 33, 1 << 40])
def test_counts_beyond_32_bits(layer: str, scale: int) -> None:
    words = {b"abab": 5, b"abc": 4, b"bcbc": 7}
    small = train_from_counts(words, 262, special_tokens=(), layer=layer)
    large = train_from_counts(
        {w: n * scale + 1 for w, n in words.items()}, 262, special_tokens=(), layer=layer
    )
    assert pairs_of(small) == pairs_of(large) == reference.train_merges(words, BYTE_IDS, 6, 2)


def test_ties_go_to_the_smaller_ids(layer: str) -> None:
    tokenizer = train_from_counts(
        {b"zy": 5, b"ab": 5, b"ba": 5, b"aa": 5}, 260, special_tokens=(), layer=layer
    )
    assert our_merges(tokenizer) == [("a", "a"), ("a", "b"), ("b", "a"), ("z", "y")]


def test_training_stops_at_the_least_count(layer: str) -> None:
    tokenizer = train(["ab ab cd"], 1000, layer=layer)
    assert our_merges(tokenizer) == [("a", "b"), ("Ġ", "c")][:1]
    assert tokenizer.vocab_size == 258
    assert tokenizer.end_of_text == 257


def test_a_limit_of_words_drops_the_rarest(layer: str) -> None:
    documents = ["often " * 50, *["once" + chr(0x4E00 + i) for i in range(300)], "often"] * 2
    words = count_words(documents, max_words=100, layer=layer)
    assert len(words) <= 350
    assert words[b"often"] >= 1
    assert max(words, key=lambda w: words[w]) == b" often"


def test_progress_is_told(layer: str) -> None:
    told: list[tuple[int, int]] = []
    read: list[int] = []
    train(
        ["abab cdcd " * 30], 262, on_progress=lambda *a: told.append(a), on_documents=read.append, layer=layer
    )
    assert told[-1] == (5, 5)
    assert read[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 256}, "vocab_size=256"),
        ({"vocab_size": 300, "special_tokens": ("a", "a")}, "distinct"),
        ({"vocab_size": 300, "min_frequency": 0}, "min_frequency=0"),
        ({"vocab_size": 300, "workers": 0}, "workers=0"),
        ({"vocab_size": 300, "max_words": 1}, "max_words=1"),
        ({"vocab_size": 300, "pattern": "("}, "pattern"),
        ({"vocab_size": 300, "pattern": "a*"}, "empty"),
        ({"vocab_size": 300, "layer": "rust"}, "layer"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_impossible_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        train(["abc"], **arguments)  # type: ignore[arg-type]


def test_any_expression_can_be_the_pattern() -> None:
    tokenizer = train(["aXbXaXbX" * 5], 260, pattern="X|[^X]+")
    assert tokenizer.pieces("aXb") == ["a", "X", "b"]
    assert Tokenizer.from_json(tokenizer.to_json()).encode("aXbab") == tokenizer.encode("aXbab")


def test_counting_over_arrays_equals_counting_one_by_one() -> None:
    # pieces around the 15 bytes that are a key, long ones twice, NUL bytes, and empty documents
    parts = [" " + "a" * n for n in range(12, 19)] + ["\0" * 14, "\0" * 15, "é" * 8, "", "'s", "b" * 300]
    documents = [*parts, "".join(parts * 3), ""]
    want = Counter(piece.encode() for document in documents for piece in splitter("gpt2")(document))
    assert count_pieces(documents) == want
    assert count_pieces([]) == count_pieces([""]) == {}
    assert count_pieces(["c" * 40]) == {b"c" * 40: 1}
