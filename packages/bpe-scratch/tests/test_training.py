"""Merges equal the reference's and Hugging Face's, whatever the layer, the processes and the hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from bpe_oracles import LAYERS, hugging_face_merges, our_merges, read_wiki
from bpe_scratch import PATTERNS, Tokenizer, TokenizerError, incremental, reference, train, words
from bpe_scratch.patterns import splitter
from bpe_scratch.training import BYTE_IDS, learn
from hypothesis import given, settings
from hypothesis import strategies as st


def learned(words: dict[bytes, int], merges: int, layer: Any, least: int = 2) -> list[tuple[int, int]]:
    return [(left, right) for left, right, _ in learn(words, merges, least, layer).merges]


def pairs_of(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    return [(left, right) for left, right, _ in tokenizer.vocabulary.merges]


@pytest.mark.parametrize("layer", LAYERS)
@settings(max_examples=150, deadline=None)
@given(documents=st.lists(st.text("aab c1'é\n", max_size=60), max_size=8), least=st.integers(1, 3))
def test_layers_learn_what_the_reference_learns(layer: str, documents: list[str], least: int) -> None:
    counts = words.count_words(documents, "gpt2", layer)
    want = reference.train_merges(counts, BYTE_IDS, 40, least)
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
    for layer in ("reference", "auto"):
        assert learned(words, 30, layer, least) == want, layer


# long runs: occurrences of (a, a) overlap, and new tokens stand side by side
@pytest.mark.parametrize(
    "text", ["a" * 1000, "ab" * 700, "aab" * 500, "a" * 37 + " " + "a" * 12, "abcabcab" * 90]
)
def test_repeated_letters(layer: str, text: str) -> None:
    words = {text.encode(): 3, text[:50].encode(): 2}
    want = reference.train_merges(words, BYTE_IDS, 30, 2)
    assert learned(words, 30, layer) == want


def test_merges_equal_hugging_face(layer: str, shakespeare: str) -> None:
    documents = [shakespeare[i : i + 5000] for i in range(0, 300_000, 5000)]
    want = hugging_face_merges(documents, 1500)
    assert our_merges(train(documents, 256 + 1500, special_tokens=(), layer=layer)) == want


# 20,000 letters have some 600 pairs of bytes: room for more is made twice
def test_room_for_pairs_is_made(shakespeare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = pytest.importorskip("bpe_scratch.compiled.trainer")
    monkeypatch.setattr(trainer, "_FIRST_PAIRS", 1 << 10)
    counts = words.count_words([shakespeare[:20_000]], "gpt2")
    assert learned(counts, 1000, "auto") == learned(counts, 1000, "reference")


@pytest.mark.slow
@pytest.mark.parametrize("share", [5, 1], ids=["20MB", "100MB"])
def test_merges_of_a_large_corpus_equal_hugging_face(share: int) -> None:
    documents = read_wiki("train")[::share]
    want = hugging_face_merges(documents, 32_000)
    for layer in ("reference", "auto"):
        assert our_merges(train(documents, 256 + 32_000, special_tokens=(), layer=layer)) == want, layer


@pytest.mark.parametrize("pattern", PATTERNS)
def test_counts_are_the_same_in_both_layers(pattern: str, wiki: list[str]) -> None:
    pytest.importorskip("numba")
    documents = [*wiki[:6], "中文 text's \r\n\r\n 12345"]
    assert words.count_words(documents, pattern) == words.count_words(documents, pattern, "reference")


# the table has 2^9 slots: it is emptied many times; 255/256: the longest piece that it holds
def test_a_full_table_of_words_is_emptied(wiki: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    counting = pytest.importorskip("bpe_scratch.compiled.counting")
    monkeypatch.setattr(counting, "_LOG", 9)
    runs = [char * size for size in (15, 16, 17, 255, 256, 5000) for char in "x\0\0"]
    documents = [*wiki[:6], *runs, " ".join(runs) * 2]
    assert words.count_words(documents, "gpt2") == words.count_words(documents, "gpt2", "reference")


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
    large = {word: n * scale + 1 for word, n in words.items()}
    want = reference.train_merges(words, BYTE_IDS, 6, 2)
    assert learned(words, 6, layer) == learned(large, 6, layer) == want


def test_ties_go_to_the_smaller_ids(layer: str) -> None:
    pairs = learned({b"zy": 5, b"ab": 5, b"ba": 5, b"aa": 5}, 4, layer)
    a, b, y, z = (BYTE_IDS[byte] for byte in b"abyz")
    assert pairs == [(a, a), (a, b), (b, a), (z, y)]


def test_training_stops_at_the_least_count(layer: str) -> None:
    tokenizer = train(["ab ab cd"], 1000, layer=layer)
    assert our_merges(tokenizer) == [("a", "b"), ("Ġ", "c")][:1]
    assert tokenizer.vocab_size == 258
    assert tokenizer.end_of_text == 257
    assert train(["ab ab cd"], 1000, min_frequency=10**30, layer=layer).vocab_size == 257


def test_a_limit_of_words_drops_the_rarest(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "MAX_WORDS", 100)
    documents = ["often " * 50, *["once" + chr(0x4E00 + i) for i in range(300)], "often"] * 2
    counts = words.count_words(documents, "gpt2", layer)
    assert len(counts) <= 350
    assert counts[b"often"] >= 1
    assert max(counts, key=lambda word: counts[word]) == b" often"


def test_over_the_limit_at_least_half_of_it_is_made_free(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # six pieces once, four twice, three thrice: without those seen once seven are left, more than half of ten
    document = "".join(
        f" {name}" * n for n, names in ((1, "abcdef"), (2, "ghij"), (3, "klm")) for name in names
    )
    for limit, left in ((10, 3), (13, 13)):
        monkeypatch.setattr(words, "MAX_WORDS", limit)
        assert len(words.count_words([document], "gpt2", layer)) == left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vocab_size": 256}, "vocab_size=256"),
        ({"vocab_size": 300, "special_tokens": ("a", "a")}, "distinct"),
        ({"vocab_size": 300, "min_frequency": 0}, "min_frequency=0"),
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
    assert splitter(tokenizer.pattern)("aXb") == ["a", "X", "b"]
    assert Tokenizer.from_json(tokenizer.to_json()).encode("aXbab") == tokenizer.encode("aXbab")
