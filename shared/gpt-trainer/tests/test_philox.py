"""The generator of the dropout masks against its authors' vectors, and the masks against their rule."""

from __future__ import annotations

import numpy as np
import pytest
from gpt_trainer.philox import (
    MULTIPLIERS,
    ROUNDS,
    WEYL,
    Site,
    dropout_key,
    dropout_keys,
    dropout_mask,
    dropout_threshold,
    philox,
)

MASK = 0xFFFFFFFF
# Random123's known-answer tests for philox4x32 with 10 rounds: counter, key, output
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def scalar_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """The rounds in Python integers, one counter at a time."""
    c, k = list(counter), list(key)
    for _ in range(ROUNDS):
        p, q = c[0] * MULTIPLIERS[0], c[2] * MULTIPLIERS[1]
        c = [(q >> 32) ^ c[1] ^ k[0], q & MASK, (p >> 32) ^ c[3] ^ k[1], p & MASK]
        k = [(word + step) & MASK for word, step in zip(k, WEYL, strict=True)]
    return tuple(c)


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN, ids=["zeros", "ones", "pi"])
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], output: tuple[int, ...]) -> None:
    words = philox(np.array(counter, np.uint32)[:, None], key)
    assert words.dtype == np.uint32
    assert tuple(words[:, 0].tolist()) == output == scalar_philox(counter, key)


def test_many_counters_at_once_equal_one_at_a_time() -> None:
    generator = np.random.default_rng(0)
    counters = generator.integers(0, 2**32, (4, 50), np.uint32)
    # both ends of each word, where a carry or a sign would show
    counters[:, :2] = [[0, MASK], [MASK, 0], [0x80000000, 1], [0x7FFFFFFF, 0x80000000]]
    key = (0xDEADBEEF, 0x80000001)
    words = philox(counters, key)
    assert [tuple(column) for column in words.T.tolist()] == [
        scalar_philox(tuple(column), key) for column in counters.T.tolist()
    ]


def test_key_words_are_the_generator_at_the_masks_address() -> None:
    seed = 0x0123456789ABCDEF
    expected = scalar_philox((1000, 11, 2, 0), (0x89ABCDEF, 0x01234567))[:2]
    assert dropout_key(seed, 1000, 11, Site.ATTENTION_RESIDUAL) == expected


def test_all_masks_of_a_step_and_of_its_neighbours_have_their_own_key() -> None:
    addresses = [(seed, step) for seed in (0, 1, 2**32) for step in range(3)]
    keys = {
        tuple(key) for address in addresses for key in dropout_keys(*address, 7, 4).reshape(-1, 3).tolist()
    }
    assert len(keys) == len(addresses) * 4 * len(Site)


def test_keys_are_laid_out_by_layer_and_site_and_end_with_the_first_row() -> None:
    keys = dropout_keys(5, 6, 7, 3)
    assert keys.shape == (3, 4, 3)
    assert keys.dtype == np.uint32
    for layer in range(3):
        for site in Site:
            assert tuple(keys[layer, site].tolist()) == (*dropout_key(5, 6, layer, site), 7)


def test_known_mask() -> None:
    """Six columns take one call's four words and two of the next; written down, so that the rule stays."""
    mask = dropout_mask((2, 2, 6), dropout_key(42, 3, 1, Site.MLP_RESIDUAL), 0.5, 7)
    assert ["".join(map(str, line)) for line in mask.reshape(4, 6).astype(int)] == [
        "111111",
        "100010",
        "101001",
        "001011",
    ]


@pytest.mark.parametrize("shape", [(2, 3, 5), (2, 2, 3, 9), (3, 1, 4)], ids=str)
def test_an_element_is_kept_by_its_columns_word_of_the_call_at_its_place(shape: tuple[int, ...]) -> None:
    key, first = (7, 9), 2**32 - 4
    mask = dropout_mask(shape, key, 0.3, first)
    assert mask.shape == shape
    lines = mask.reshape(shape[0], -1, shape[-1])
    for row, line, column in np.ndindex(*lines.shape):
        word = scalar_philox((column // 4, line, first + row, 0), key)[column % 4]
        assert lines[row, line, column] == (word >= int(0.3 * 2**32))


def test_a_mask_is_the_rows_of_the_whole_steps() -> None:
    whole = dropout_mask((6, 5, 7), (1, 2), 0.5)
    for first, rows in ((0, 4), (4, 2), (3, 1)):
        assert np.array_equal(dropout_mask((rows, 5, 7), (1, 2), 0.5, first), whole[first : first + rows])


@pytest.mark.parametrize(
    ("rate", "threshold"), [(0.0, 0), (0.5, 2**31), (0.25, 2**30), (1 - 2**-32, 2**32 - 1)]
)
def test_threshold_is_the_rate_in_32_bits(rate: float, threshold: int) -> None:
    assert dropout_threshold(rate) == threshold


def test_rate_zero_keeps_everything() -> None:
    assert dropout_mask((63, 2, 65), (1, 2), 0.0).all()


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_masks_keep_the_right_share_without_pattern(rate: float) -> None:
    rows, columns = 512, 513
    mask = dropout_mask((1, rows, columns), dropout_key(1, 2, 4, Site.ATTENTION), rate)[0]
    spread = np.sqrt(rate * (1 - rate) / mask.size)
    assert abs(mask.mean() - (1 - rate)) < 5 * spread
    # a row, a column, or a neighbour that tells about another would leave these bounds
    assert np.abs(mask.mean(0) - (1 - rate)).max() < 5.5 * np.sqrt(rate * (1 - rate) / rows)
    assert np.abs(mask.mean(1) - (1 - rate)).max() < 5.5 * np.sqrt(rate * (1 - rate) / columns)
    centred = mask - (1 - rate)
    for shift in ((0, 1), (1, 0), (1, 1)):
        correlation = (centred * np.roll(centred, shift, (0, 1))).mean() / (rate * (1 - rate))
        assert abs(correlation) < 5 / np.sqrt(mask.size)


def test_two_sites_draw_independent_masks() -> None:
    a, b = (dropout_mask((4, 100, 401), dropout_key(0, 0, 0, site), 0.5) for site in list(Site)[1:3])
    assert abs((a == b).mean() - 0.5) < 5 * 0.5 / np.sqrt(a.size)
