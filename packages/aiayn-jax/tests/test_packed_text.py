"""Texts that are packed come back as they were, one by one and in parts."""

from __future__ import annotations

import sys

import pytest
from aiayn_jax.data.packed_text import PackedText
from hypothesis import given
from hypothesis import strategies as st

# lone surrogates too: what a tokenizer refuses must reach it
TEXTS = st.lists(st.text(st.characters(exclude_categories=()), max_size=9), max_size=9)


@given(TEXTS, st.slices(9))
def test_it_is_the_list_of_its_texts(texts: list[str], part: slice) -> None:
    packed = PackedText(texts)
    assert len(packed) == len(texts)
    assert list(packed) == [packed[place] for place in range(len(texts))] == texts
    assert [packed[place] for place in range(-len(texts), 0)] == texts
    assert list(packed[part]) == texts[part]
    with pytest.raises(IndexError):
        packed[len(texts)]


def test_a_part_is_packed_and_no_view() -> None:
    packed = PackedText(["a", "bc", "日本"])
    part = packed[1:]
    part.append("d")
    assert isinstance(part, PackedText)
    assert (list(part), list(packed)) == (["bc", "日本", "d"], ["a", "bc", "日本"])


def test_a_text_takes_its_bytes_and_eight_more() -> None:
    count, text = 10_000, "“Größe”, ja"
    packed = PackedText([text] * count)
    taken = sys.getsizeof(packed._bytes) + sys.getsizeof(packed._ends)
    # both grow by an eighth ahead
    assert taken <= 1.13 * count * (len(text.encode()) + 8) + 200
