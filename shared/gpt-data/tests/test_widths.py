from __future__ import annotations

from itertools import combinations

import numpy as np
from gpt_data.widths import choose_widths
from hypothesis import example, given
from hypothesis import strategies as st


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 4), st.sampled_from([1, 3, 8]))
@example([5], 8, 32)
def test_no_choice_of_widths_fills_up_fewer_positions(lengths: list[int], count: int, multiple: int) -> None:
    widths = choose_widths(np.array(lengths), count, multiple)
    candidates = range(multiple, max(lengths) + multiple, multiple)

    def cost(chosen: tuple[int, ...]) -> float:
        if max(chosen) < max(lengths):
            return np.inf
        return sum(min(width for width in chosen if width >= length) for length in lengths)

    every_way = (c for size in range(1, count + 1) for c in combinations(candidates, size))
    assert cost(tuple(widths)) == min(map(cost, every_way))
    assert len(widths) <= count
    assert widths == sorted(set(widths))
    assert all(width % multiple == 0 for width in widths)
