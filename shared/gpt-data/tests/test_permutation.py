from __future__ import annotations

import numpy as np
import pytest
from gpt_data.permutation import permute


# 1 and 2: degenerate; around powers of two and of four: where the network's width changes
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 1023, 1024, 1025, 99_991])
@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_it_is_a_permutation(size: int, epoch: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, 3, epoch)), np.arange(size))


def test_one_index_at_a_time_gives_the_same() -> None:
    whole = permute(np.arange(1000), 1000, 5, 2)
    assert [int(permute(np.array([i]), 1000, 5, 2)[0]) for i in range(0, 1000, 37)] == whole[::37].tolist()


def test_the_order_is_frozen() -> None:
    # runs that were begun with this order must go on with it: a change here breaks every resume
    assert permute(np.arange(10), 10, 0, 0).tolist() == [0, 3, 6, 2, 8, 7, 5, 9, 1, 4]
    assert permute(np.arange(4), 4, 0, 0).tolist() == [1, 2, 0, 3]
    assert permute(np.arange(5), 10**12, 42, 3).tolist() == [
        811967964869,
        515965919564,
        187038472018,
        807910846402,
        881383768354,
    ]


def test_seed_and_epoch_change_the_order() -> None:
    orders = {tuple(permute(np.arange(100), 100, seed, epoch)) for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400
    big = 2**64 - 1
    assert sorted(permute(np.arange(100), 100, big, 10**6)) == list(range(100))


def test_positions_and_neighbours_are_uniform() -> None:
    size, draws = 16, 8000
    table = np.stack([permute(np.arange(size), size, seed, 0) for seed in range(draws)])
    for column in (0, 7, 15):
        counts = np.bincount(table[:, column], minlength=size)
        chi2 = float(((counts - draws / size) ** 2 / (draws / size)).sum())
        # 15 degrees of freedom: 37.7 is passed once in a thousand
        assert chi2 < 37.7, f"column {column}: {chi2}"
    steps = np.bincount((table[:, 1] - table[:, 0]) % size, minlength=size)[1:]
    chi2 = float(((steps - draws / (size - 1)) ** 2 / (draws / (size - 1))).sum())
    assert chi2 < 36.1, chi2


def test_an_index_outside_is_refused() -> None:
    for index in (-1, 10):
        with pytest.raises(ValueError, match="outside"):
            permute(np.array([index]), 10, 0, 0)
