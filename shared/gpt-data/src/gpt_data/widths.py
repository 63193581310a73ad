"""Few widths for rows of many lengths: each is compiled once, and little is filled up.

Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def choose_widths(lengths: Sequence[int] | Int64[np.ndarray, " n"], at_most: int, multiple: int) -> list[int]:
    """The widths with the least filling, if every row takes the next that holds it; ascending.

    Found by dynamic programming over the candidate widths, exactly: the best choice of k widths that ends
    at one width is the best of k - 1 that ends at an earlier one, and the rows between the two filled up.

    Args:
        lengths: At least one.
        at_most: How many widths, at least one.
        multiple: What each is a multiple of.

    >>> choose_widths([10, 11, 12, 90, 100], at_most=2, multiple=4)
    [12, 100]
    """
    rounded, counts = np.unique(-(-np.asarray(lengths) // multiple) * multiple, return_counts=True)
    below = np.concatenate(([0], np.cumsum(counts)))
    many = len(rounded)
    cost = np.where(np.arange(many + 1) > 0, np.inf, 0.0)
    choices = []
    for _ in range(min(at_most, many)):
        # [end, begin]: rows from candidate begin to candidate end as wide as the latter
        filled = cost[None, :-1] + rounded[:, None] * (below[1:, None] - below[None, :-1])
        filled = np.where(np.arange(many)[:, None] >= np.arange(many)[None, :], filled, np.inf)
        choices.append(filled.argmin(axis=1))
        cost = np.concatenate(([np.inf], filled.min(axis=1)))
    end, widths = many - 1, []
    for choice in reversed(choices):
        widths.append(int(rounded[end]))
        end = int(choice[end]) - 1
    return widths[::-1]
