"""Numbers in words, read back by a parser written apart; and parts that share no number."""

from __future__ import annotations

import pytest
from gpt_jax.aiayn.numbers import RANGES, in_words, number_pairs, number_parts
from hypothesis import given
from hypothesis import strategies as st

ONES = {
    word: value
    for value, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen".split()
    )
} | {
    word: 10 * value
    for value, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), start=2)
}


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
    everything = [number for numbers in parts.values() for number in numbers]
    assert len(set(everything)) == len(everything)
    for numbers in parts.values():
        assert all(any(low <= number < high for number in numbers) for low, high in RANGES)
        assert all(0 <= number < RANGES[-1][1] for number in numbers)
    assert len(parts["test"]) == len(parts["val"]) == 300


def test_pairs_go_both_ways_and_say_the_same_number() -> None:
    pairs = number_pairs([7, 4096, 12_345])
    assert list(pairs.source[:3]) == ["7", "4,096", "12345"]
    assert list(pairs.target[3:]) == ["7", "4,096", "12,345"]
    assert list(pairs.target[:3]) == list(pairs.source[3:]) == [in_words(n) for n in (7, 4096, 12_345)]
