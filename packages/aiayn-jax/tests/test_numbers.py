"""Numbers in words, read back by a parser written apart; and parts that share no number."""

from __future__ import annotations

import pytest
from aiayn_jax.data.numbers import RANGES, in_words, number_pairs, number_parts
from hypothesis import given
from hypothesis import strategies as st

NAMES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ONES = {word: value for value, word in enumerate(NAMES.split())}
ONES |= {word: 10 * value for value, word in enumerate(TENS.split(), start=2)}


def from_words(text: str) -> int:
    """Add up from the left: a scale multiplies what has come since the scale before."""
    total = current = 0
    for word in text.replace("-", " ").split():
        if word == "hundred":
            current *= 100
        elif word in ("thousand", "million"):
            total, current = total + current * {"thousand": 1000, "million": 10**6}[word], 0
        elif word != "and":
            current += ONES[word]
    return total + current


# where the words change form: teens, tens, "and" after hundreds and after thousands, no trailing zero
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (115, "one hundred and fifteen"),
        (1000, "one thousand"),
        (1001, "one thousand and one"),
        (1100, "one thousand one hundred"),
        (4096, "four thousand and ninety-six"),
        (20_000, "twenty thousand"),
        (700_310, "seven hundred thousand three hundred and ten"),
        (1_000_000, "one million"),
        (2_000_005, "two million and five"),
    ],
)
def test_known_numbers(number: int, words: str) -> None:
    assert in_words(number) == words


@given(st.integers(0, 10**9 - 1))
def test_words_read_back_as_the_number(number: int) -> None:
    assert from_words(in_words(number)) == number


@pytest.mark.parametrize("number", [-1, 10**9])
def test_a_number_outside_the_range_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"number={number} is outside"):
        in_words(number)


def test_the_parts_share_no_number_and_hold_every_length() -> None:
    parts = number_parts()
    distinct = {part: set(numbers) for part, numbers in parts.items()}
    assert len(set.union(*distinct.values())) == sum(map(len, distinct.values()))
    assert len(distinct["train"]) > 18_000
    for numbers in parts.values():
        assert all(any(low <= number < high for number in numbers) for low, high in RANGES)
        assert all(0 <= number < RANGES[-1][1] for number in numbers)
    assert len(parts["test"]) == len(parts["val"]) == 300


def test_pairs_go_both_ways_and_say_the_same_number() -> None:
    pairs = number_pairs([7, 4096, 12_345])
    assert sorted(zip(pairs.source, pairs.target, strict=True)) == [
        ("12345", "twelve thousand three hundred and forty-five"),
        ("4,096", "four thousand and ninety-six"),
        ("7", "seven"),
        ("four thousand and ninety-six", "4,096"),
        ("seven", "7"),
        ("twelve thousand three hundred and forty-five", "12,345"),
    ]


def test_the_first_few_pairs_are_of_every_kind() -> None:
    """The score in training looks at the first validation pairs alone."""
    found = number_pairs(number_parts()["val"]).first(100).source
    into_words = [text for text in found if text[0].isdigit()]
    assert 30 <= len(into_words) <= 70
    assert {len(text.replace(",", "")) for text in into_words} >= {3, 4, 5, 6}
