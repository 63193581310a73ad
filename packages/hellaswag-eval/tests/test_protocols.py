"""From text to tokens: what each protocol writes, where it cuts, and what it counts."""

from __future__ import annotations

from collections.abc import Sequence

import bpe_scratch
import numpy as np
import pytest
from gpt_trainer.errors import InputError
from hellaswag_eval.items import Item
from hellaswag_eval.models import encoder
from hellaswag_eval.protocols import clean, encode_items, harness_texts, split_context

TOKENIZER = bpe_scratch.Tokenizer.from_bytes()
ENCODE = encoder(TOKENIZER)
ACTIVITY = Item(0, "A man runs. he", ("stops.", "is Ünïcode 🙂"), 1, "Running", ("A man runs.", "he"))
WIKIHOW = Item(
    1,
    "[header] How to sew [title] Take a needle. [step] Go on.",
    ("[title] Rest. [substeps] Sit down.", "Sew."),
    0,
    "Crafts",
    ("[header] How to sew [title] Take a needle. [step] Go on.", ""),
)


def text(ids: np.ndarray) -> str:
    return TOKENIZER.decode(ids.tolist())


def test_completion_leaves_the_text_alone() -> None:
    first, second = encode_items([ACTIVITY, WIKIHOW], ENCODE, "completion")
    assert text(first.context) == "A man runs. he"
    assert [text(ending) for ending in first.endings] == [" stops.", " is Ünïcode 🙂"]
    assert (first.characters, first.utf8_bytes) == ((6, 12), (6, 17))
    assert text(second.context) == WIKIHOW.context
    assert text(second.endings[0]) == " [title] Rest. [substeps] Sit down."
    assert (first.label, first.row, second.label, second.row) == (1, 0, 0, 1)


def test_harness_cleans_and_capitalises() -> None:
    first, second = encode_items([ACTIVITY, WIKIHOW], ENCODE, "harness")
    assert text(first.context) == "Running: A man runs. He"
    assert [text(ending) for ending in first.endings] == [" stops.", " is Ünïcode 🙂"]
    # a double blank becomes one; of three, which the markers leave here, two are left
    assert text(second.context) == "Crafts: How to sew. Take a needle. Go on."
    assert [text(ending) for ending in second.endings] == ["  Rest. Sit down.", " Sew."]
    # the blank that a marker leaves at the front belongs to the ending's length
    assert second.characters == (len(" Rest. Sit down."), 4)


# each step of the clean-up alone, and the order of the steps
@pytest.mark.parametrize(
    ("raw", "want"),
    [
        ("  a  b ", "a b"),
        ("a [title] b", "a. b"),
        ("[title] b", " b"),
        ("a [step] b", "a b"),
        ("a [x [y] z] b", "a z] b"),
        ("a    b", "a  b"),
        ("東京 [step] 🙂", "東京 🙂"),
    ],
)
def test_clean(raw: str, want: str) -> None:
    assert clean(raw) == want


@pytest.mark.parametrize(
    ("context", "wikihow", "want"),
    [
        ("One. two. three", None, ("One. two.", "three")),
        ("One. Two", None, ("One. Two", "")),
        ("only one", None, ("only one", "")),
        ("One. two", True, ("One. two", "")),
        ("[header] One. two", None, ("[header] One. two", "")),
        ("[header] One. two", False, ("[header] One.", "two")),
    ],
)
def test_split_context(context: str, wikihow: bool | None, want: tuple[str, str]) -> None:
    assert split_context(Item(0, context, ("a", "b"), 0, wikihow=wikihow)) == want


def test_harness_reconstructs_the_parts() -> None:
    whole = ACTIVITY._replace(parts=None)
    assert harness_texts(whole) == harness_texts(ACTIVITY)


def test_harness_needs_a_title_and_something_besides_markers() -> None:
    with pytest.raises(InputError, match="item 0 has no activity_label"):
        encode_items([ACTIVITY._replace(activity=None)], ENCODE, "harness")
    with pytest.raises(InputError, match="item 1: ending 1 is empty without its markers"):
        encode_items([WIKIHOW._replace(endings=("a", "[step]"))], ENCODE, "harness")


def words(texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of a tokenizer that takes a blank to the word behind it, as GPT-2's does: one id a word."""
    return [
        np.array([len(word) for word in text.replace(" ", "\0 ").split("\0")], np.int32) for text in texts
    ]


def test_blanks_at_the_end_of_the_context_go_to_the_ending() -> None:
    item = ACTIVITY._replace(context="x", parts=("One [step]", "[step]"), activity="T", endings=("ab", "c"))
    context, _ = harness_texts(item)
    assert context == "T: One "
    example = encode_items([item], words, "harness")[0]
    # "T:", " One" and then " ", " ab": the blank is a word of its own, and the ending's
    assert example.context.tolist() == [2, 4]
    assert [ending.tolist() for ending in example.endings] == [[1, 3], [1, 2]]


def test_text_that_has_no_token_or_cannot_be_encoded_is_named() -> None:
    def swallow(texts: Sequence[str]) -> list[np.ndarray]:
        return [np.zeros(0 if "stops" in each else 3, np.int32) for each in texts]

    with pytest.raises(InputError, match="item 0: ending 0 makes no token of its own"):
        encode_items([ACTIVITY], swallow, "completion")
    with pytest.raises(InputError, match="cannot encode the data"):
        encode_items([ACTIVITY._replace(context="\ud800")], ENCODE, "completion")
