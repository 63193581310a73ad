"""Tokenising pairs: one vocabulary, any text round trips, long pairs are left out and named."""

from __future__ import annotations

import numpy as np
import pytest
from aiayn_jax.data import sentences as module
from aiayn_jax.data.pairs import TextPairs
from aiayn_jax.data.sentences import encode_pairs, encode_side, end_of_text, learn_tokenizer
from gpt_data.errors import InputError
from hypothesis import given
from hypothesis import strategies as st

ENGLISH = ["the cat sleeps", "the dog sleeps", "the cat runs", "a dog runs"] * 5
GERMAN = ["die Katze schläft", "der Hund schläft", "die Katze rennt", "ein Hund rennt"] * 5
PAIRS = TextPairs(ENGLISH, GERMAN, range(1, 21))
TOKENIZER = learn_tokenizer(PAIRS, 300, "gpt2")


def test_both_sides_lend_their_words_to_one_vocabulary() -> None:
    tokens = {TOKENIZER.decode([i]) for i in range(TOKENIZER.vocab_size)}
    assert {" cat", " Hund"} <= tokens
    assert end_of_text(TOKENIZER) == TOKENIZER.vocab_size - 1


@given(st.lists(st.text(max_size=12), max_size=5))
def test_sentences_round_trip_and_end_once(sentences: list[str]) -> None:
    """Characters never seen are bytes; the end of text written out is ordinary text."""
    sentences = [*sentences, "<|endoftext|>", "", "日本語 \x00 🦜"]
    side = encode_side(TOKENIZER, sentences)
    assert side.ids.dtype == np.int32
    assert side.starts[-1] == len(side.ids)
    for text, begin, end in zip(sentences, side.starts, side.starts[1:], strict=False):
        ids = side.ids[begin:end].tolist()
        assert ids[-1] == end_of_text(TOKENIZER)
        assert end_of_text(TOKENIZER) not in ids[:-1]
        assert TOKENIZER.decode(ids[:-1]) == text


def test_sentences_encoded_in_portions_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = encode_side(TOKENIZER, GERMAN)
    for count in (1, 7, len(GERMAN)):
        monkeypatch.setattr(module, "SENTENCES_AT_A_TIME", count)
        portions = encode_side(TOKENIZER, GERMAN)
        assert all(np.array_equal(got, want) for got, want in zip(portions, whole, strict=True))
    assert [len(array) for array in encode_side(TOKENIZER, [])] == [0, 1]


def test_pairs_longer_than_the_model_are_left_out_counted_and_named() -> None:
    pairs = TextPairs(["a", "b" * 30, "c", "d" * 9], ["a", "b", "c" * 40, "d"], [1, 4, 7, 8])
    kept, notes = encode_pairs(TOKENIZER, pairs, 10, "training")
    # "d" * 9 and its end are 10 tokens: just short enough
    assert [TOKENIZER.decode(ids) for ids in np.split(kept.source.ids, kept.source.starts[1:-1])] == [
        "a<|endoftext|>",
        "ddddddddd<|endoftext|>",
    ]
    assert kept.target.lengths.tolist() == [2, 2]
    assert notes == [
        "training: 2 of 4 pairs left out, longer than 10 tokens (numbers 4, 7; the longest has 41)"
    ]


def test_nothing_short_enough_is_an_error() -> None:
    with pytest.raises(InputError, match=r"1 of 1 pairs left out.*raise --longest"):
        encode_pairs(TOKENIZER, TextPairs(["b" * 30], ["x"], [1]), 10, "training")


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(InputError, match=r"--vocab 256: .*256 bytes and 1"):
        learn_tokenizer(PAIRS, 256, "gpt2")


def test_the_digest_sees_ids_and_where_sentences_begin() -> None:
    digests = set()
    for source in (["ab", "c"], ["a", "bc"], ["ab", "d"], ["c", "ab"]):
        digests.add(encode_pairs(TOKENIZER, TextPairs(source, ["x", "y"], [1, 2]), 10, "")[0].sha256)
    assert len(digests) == 4
