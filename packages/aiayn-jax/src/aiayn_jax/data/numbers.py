"""Pairs that need no download: numbers in figures and in English words, both ways.

    4,096  <->  four thousand and ninety-six

The numbers below a million fall into four ranges of lengths. Each range is shuffled by a permutation, and
the first places are for testing, the next for validation, the next for training: a permutation sends no
two places to one number, so the parts share none.
"""

from __future__ import annotations

import numpy as np
from gpt_data.permutation import permute

from aiayn_jax.data.pairs import TextPairs

ONES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
TEENS = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen"]
TEENS += ["sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
SMALL = ONES + TEENS
SCALES = ((1_000_000, "million"), (1000, "thousand"))
RANGES = ((0, 1000), (1000, 10_000), (10_000, 100_000), (100_000, 1_000_000))
HELD_OUT = 75
"""Numbers of each range for testing, and as many for validation."""
TRAINED = 6000
"""Numbers of each range to train on; the shortest range has fewer, and each of them several times."""
SHUFFLE_SEED = 0x6E756D62
DIGIT_PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
"""Cuts figures into digits: a merge of several would hide the place of each."""


def in_words(number: int) -> str:
    """A number in British English.

    >>> in_words(4096), in_words(700_310)
    ('four thousand and ninety-six', 'seven hundred thousand three hundred and ten')

    Args:
        number: From 0 to 999,999,999.

    Raises:
        ValueError: If it is outside that range.
    """
    if not 0 <= number < 10**9:
        raise ValueError(f"number={number} is outside 0..999,999,999")
    words = []
    rest = number
    for scale, name in SCALES:
        if rest >= scale:
            words += [_below_thousand(rest // scale), name]
            rest %= scale
    if rest or not words:
        words += (["and"] if words and rest < 100 else []) + [_below_thousand(rest)]
    return " ".join(words)


def _below_thousand(number: int) -> str:
    hundreds, rest = divmod(number, 100)
    if not hundreds:
        return _below_hundred(rest)
    return f"{SMALL[hundreds]} hundred" + (f" and {_below_hundred(rest)}" if rest else "")


def _below_hundred(number: int) -> str:
    if number < len(SMALL):
        return SMALL[number]
    tens, ones = divmod(number, 10)
    return TENS[tens] + (f"-{SMALL[ones]}" if ones else "")


def number_parts() -> dict[str, list[int]]:
    """The numbers of each part: ``test``, ``val`` and ``train``, which share none."""
    parts: dict[str, list[int]] = {"test": [], "val": [], "train": []}
    for low, high in RANGES:
        size = high - low
        shuffled = low + permute(np.arange(size), size, SHUFFLE_SEED, 0)
        test, val, rest = np.split(shuffled, [HELD_OUT, 2 * HELD_OUT])
        # numbers of each length come equally often, however few there are
        for part, numbers in (("test", test), ("val", val), ("train", np.resize(rest, TRAINED))):
            parts[part] += numbers.tolist()
    return parts


def number_pairs(numbers: list[int]) -> TextPairs:
    """Two pairs for each number: figures to words, and words to figures.

    Figures to be read come with a comma at the thousands or, for every other number, without; figures
    that are written have it. The pairs are shuffled, so that the first few are of every kind.
    """
    read = [f"{number:,}" if index % 2 else str(number) for index, number in enumerate(numbers)]
    words = [in_words(number) for number in numbers]
    written = [f"{number:,}" for number in numbers]
    source, target = read + words, words + written
    order = permute(np.arange(len(source)), len(source), SHUFFLE_SEED, 1).tolist() if numbers else []
    numbered = range(1, len(order) + 1)
    return TextPairs([source[place] for place in order], [target[place] for place in order], numbered)
