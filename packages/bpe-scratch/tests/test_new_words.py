"""New words, merged by the compiled layer, equal the reference."""

from __future__ import annotations

import numpy as np
import pytest
from bpe_oracles import vocabularies
from bpe_scratch import Tokenizer, Vocabulary, reference
from hypothesis import given, settings
from hypothesis import strategies as st

encoder = pytest.importorskip("bpe_scratch.compiled.encoder", reason="Numba is not installed")


def want(known: Vocabulary, words: list[str]) -> list[list[int]]:
    return [reference.encode_piece(word.encode(), known.byte_ids, known.pairs) for word in words]


def in_one_text(known: Vocabulary, words: list[str]) -> list[int]:
    return Tokenizer(known, pattern="gpt2", layer="auto").encode(" ".join(words))


# 16 bytes and more: words that do not fit their slot
@settings(max_examples=200, deadline=None)
@given(known=vocabularies(), words=st.lists(st.text("abc", min_size=1, max_size=18), min_size=1, max_size=50))
def test_any_ranks(known: Vocabulary, words: list[str]) -> None:
    pieces = [words[0], *(" " + word for word in words[1:])]
    assert in_one_text(known, words) == [i for part in want(known, pieces) for i in part]


@pytest.mark.parametrize("width", range(1, 18))
def test_a_run_pairs_up_from_the_left(width: int) -> None:
    a = Vocabulary.from_merges([]).byte_ids[97]
    known = Vocabulary.from_merges([(a, a), (256, 256)])
    ids = [257] * (width // 4) + [256] * (width % 4 // 2) + [a] * (width % 2)
    assert in_one_text(known, ["a" * width]) == ids


def test_gaps_between_ranks_and_ids() -> None:
    a, b, c = (Vocabulary.from_merges([]).byte_ids[byte] for byte in b"abc")
    built = Vocabulary.from_merges([(a, b), (b, c), (256, c), (a, 257)])
    # the largest rank that the table holds; the last merge comes first
    known = Vocabulary(built.tokens, built.merges, ranks=[(1 << 32) - 2, 1 << 31, 77, 5])
    words = ["abc", "ab", "bc", "abcabc", "cab", "bcab"]
    got = [Tokenizer(known, pattern="none", layer="auto").encode(word) for word in words]
    assert got == want(known, words)
    assert got[0] == [258]


def test_gpt2s_merges(gpt2: Tokenizer) -> None:
    known, random = gpt2.vocabulary, np.random.default_rng(0)
    letters = [t.decode() for t in known.tokens if t is not None and t.isalpha() and t.isascii()]
    words = ["".join(letters[i] for i in random.integers(0, len(letters), 3)) for _ in range(20_000)]
    pieces = [words[0], *(" " + word for word in words[1:])]
    assert in_one_text(known, words) == [i for part in want(known, pieces) for i in part]


# eight pairs are read at once, a slot holds 15 bytes, and pieces over 255 go through the heap
def test_every_width_in_one_group(gpt2: Tokenizer) -> None:
    known, random = gpt2.vocabulary, np.random.default_rng(1)
    widths = [*range(1, 35), 63, 64, 65, 128, 253, 254, 255, 256, 300]
    words = ["".join(random.choice(list("aehinorst"), width)) for width in random.permutation(widths * 2)]
    pieces = [words[0], *(" " + word for word in words[1:])]
    assert in_one_text(known, words) == [i for part in want(known, pieces) for i in part]


def test_known_words_are_kept_and_a_full_table_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "_LOG", 10)
    tokenizer = Tokenizer(Vocabulary.from_merges([]), pattern="none")
    # of 2 to 5 ids, in the slot and beyond it, and long ones
    words = [f"{i:x}" + "z" * (16 * (i % 7 == 0)) for i in range(16, 6000)]
    ids, used = [[tokenizer.vocabulary.byte_ids[byte] for byte in word.encode()] for word in words], []
    for word, expected in zip(words, ids, strict=True):
        assert tokenizer.encode(word) == tokenizer.encode(word) == expected
        used.append(tokenizer._encoder._state["slots_used"])
    assert used[:512] == [*range(257, 769)]
    assert max(used) == 768
