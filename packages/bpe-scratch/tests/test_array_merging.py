"""The hash table of arrays is a dictionary, and words merged side by side equal the reference one by one."""

from __future__ import annotations

import numpy as np
import pytest
from bpe_scratch import Tokenizer, Vocabulary, array_encoder, reference
from bpe_scratch.array_merging import PLACES, ArrayMerger
from bpe_scratch.array_table import ArrayTable
from hypothesis import given, settings
from hypothesis import strategies as st

LONGEST = PLACES - 1


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabulary:
    """Merges over three letters, in any order: a token may be made in several ways, or before its parts."""
    pairs: list[tuple[int, int]] = []
    built = Vocabulary.from_merges(pairs)
    known = [built.byte_ids[byte] for byte in b"abc"]
    for _ in range(draw(st.integers(0, 12))):
        pair = draw(st.sampled_from(known)), draw(st.sampled_from(known))
        if pair not in pairs:
            pairs.append(pair)
            built = Vocabulary.from_merges(pairs)
            known.append(built.merges[-1][2])
    # as trained; in any order; as in tiktoken's files, where merges of one rank make the same token
    shuffled, by_token = draw(st.permutations(range(len(pairs)))), [new for _, _, new in built.merges]
    ranks = draw(st.sampled_from([None, shuffled, by_token]))
    return Vocabulary(built.tokens, built.merges, ranks=ranks)


def merge_all(known: Vocabulary, words: list[bytes], behind: int = 0) -> list[list[int]]:
    """The ids of each word; ``behind`` fills the places behind it."""
    places = np.full((len(words), PLACES), behind, dtype=np.uint8)
    for row, word in zip(places, words, strict=True):
        row[: len(word)] = list(word)
    ids, counts = ArrayMerger(known).merge(places, np.array([len(word) for word in words]))
    return [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])]


@settings(max_examples=300, deadline=None)
@given(
    known=vocabularies(),
    words=st.lists(st.text("abc", min_size=1, max_size=LONGEST).map(str.encode), min_size=1, max_size=20),
    behind=st.sampled_from(b"\0a"),
)
def test_words_side_by_side_equal_the_reference(known: Vocabulary, words: list[bytes], behind: int) -> None:
    want = [reference.encode_piece(word, known.byte_ids, known.pairs) for word in words]
    assert merge_all(known, words, behind) == want


def test_a_run_pairs_up_from_the_left() -> None:
    a = Vocabulary.from_merges([]).byte_ids[97]
    known = Vocabulary.from_merges([(a, a), (256, 256)])
    want = [[257] * (n // 4) + [256] * (n % 4 // 2) + [a] * (n % 2) for n in range(1, LONGEST + 1)]
    assert merge_all(known, [b"a" * n for n in range(1, LONGEST + 1)]) == want


def test_more_words_than_a_block_on_gpt2s_merges(gpt2: Tokenizer) -> None:
    known, random = gpt2.vocabulary, np.random.default_rng(0)
    tokens = [token for token in known.tokens if token is not None]
    joined = [b"".join(tokens[i] for i in random.integers(0, len(tokens), 3)) for _ in range(20_000)]
    words = [word[:LONGEST] for word in joined]
    want = [reference.encode_piece(word, known.byte_ids, known.pairs) for word in words]
    assert merge_all(known, words) == want


# 64 slots: keys of a small range collide and go round the end of the table
@settings(max_examples=300, deadline=None)
@given(
    batches=st.lists(
        st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8)), min_size=1, max_size=60), max_size=4
    )
)
def test_the_table_is_a_dictionary(batches: list[list[tuple[int, int]]]) -> None:
    table, want = ArrayTable(6, absent=-7), dict[tuple[int, int], int]()
    for batch in batches:
        first, second = np.array(batch, dtype=np.uint64).T
        slots, fresh = table.insert(first, second)
        new = [batch[place] for place in fresh.tolist()]
        assert sorted(new) == sorted(set(batch) - set(want))
        for key in new:
            want[key] = len(want)
        table.values[slots[fresh]] = [want[key] for key in new]
        assert table.values[slots].tolist() == [want[key] for key in batch]
        assert table.used == len(want)
    every = [(a, b) for a in range(8) for b in range(1, 9)]
    first, second = np.array(every, dtype=np.uint64).T
    assert table.values[table.find(first, second)].tolist() == [want.get(key, -7) for key in every]


# a tokenizer whose whole pieces skip the merges never merges them from their bytes, in a batch either
@pytest.mark.parametrize("whole_pieces", [False, True])
def test_a_batch_of_new_words_equals_one_by_one(gpt2: Tokenizer, whole_pieces: bool) -> None:
    known = gpt2.vocabulary
    # without half of its merges, many tokens can no longer be made
    few = Vocabulary(known.tokens, known.merges[::2], whole_pieces=whole_pieces)
    tokens = [token.decode() for token in known.tokens if token and token.isalpha()]
    text = " ".join(tokens[:20_000:7])
    ids, _ = Tokenizer(few, layer="arrays").encode_to_numpy([text])
    words = [text.split(" ")[0], *(" " + word for word in text.split(" ")[1:])]
    plain = Tokenizer(few, layer="arrays")
    assert ids.tolist() == [i for word in words for i in plain.encode(word)]


# once the table was emptied only between texts, and one text with too many words never came back
def test_one_text_may_hold_more_words_than_the_table(
    gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("_LOG", 8), ("_LIMIT", 150), ("_BLOCK", 100)):
        monkeypatch.setattr(array_encoder, name, value)
    text = " ".join(f"w{i:x}" for i in range(3000))
    ids, _ = Tokenizer(gpt2.vocabulary, layer="arrays").encode_to_numpy([text])
    assert ids.tolist() == gpt2.encode(text)


def test_an_interrupted_batch_leaves_no_word_without_ids(
    gpt2: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(f"word{i:x}" for i in range(500))
    plain = Tokenizer(gpt2.vocabulary, layer="arrays")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(array_encoder.ArrayMerger, "merge", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plain.encode_to_numpy([text])
    ids, _ = plain.encode_to_numpy([text])
    assert ids.tolist() == gpt2.encode(text)
