"""Few static shapes for rows of many lengths, so that a compiled backend compiles each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Group(NamedTuple):
    """Rows that are padded to one width, and go to the model so many at a time.

    Attributes:
        height: Rows of each batch, the last one filled up.
        width: Positions of each row.
        members: Which rows, by their index.
    """

    height: int
    width: int
    members: tuple[int, ...]

    def batches(self) -> list[tuple[int, ...]]:
        """The members in batches."""
        return [self.members[at : at + self.height] for at in range(0, len(self.members), self.height)]


def choose_widths(lengths: Sequence[int], at_most: int, step: int) -> list[int]:
    """The widths, multiples of ``step``, with the least padding, if every row takes the next that holds it.

    Found by dynamic programming over the candidate widths, exactly: the best choice of k widths that ends
    at one width is the best of k - 1 that ends at an earlier one, and the rows between the two padded.

    Args:
        at_most: How many widths, at least one.

    >>> choose_widths([10, 11, 12, 90, 100], at_most=2, step=4)
    [12, 100]
    """
    rounded, counts = np.unique(-(-np.asarray(lengths) // step) * step, return_counts=True)
    below = np.concatenate(([0], np.cumsum(counts)))
    many = len(rounded)
    cost = np.where(np.arange(many + 1) > 0, np.inf, 0.0)
    choices = []
    for _ in range(min(at_most, many)):
        # [end, begin]: rows from candidate begin to candidate end padded to the latter
        padded = cost[None, :-1] + rounded[:, None] * (below[1:, None] - below[None, :-1])
        padded = np.where(np.arange(many)[:, None] >= np.arange(many)[None, :], padded, np.inf)
        choices.append(padded.argmin(axis=1))
        cost = np.concatenate(([np.inf], padded.min(axis=1)))
    end, widths = many - 1, []
    for choice in reversed(choices):
        widths.append(int(rounded[end]))
        end = int(choice[end]) - 1
    return widths[::-1]


def group_rows(
    lengths: Sequence[int], *, tokens: int, at_most: int, step: int, widest: int | None = None
) -> list[Group]:
    """Rows sorted into groups of one shape each, widest first, so that memory runs out early or never.

    The batches of a group are equally high, to the row, as long as they hold ``tokens`` at most.

    Args:
        tokens: Positions of a batch, padding included; a row that is longer makes a batch alone.
    """
    if not lengths:
        return []
    order = np.argsort(lengths, kind="stable")[::-1]
    widths = choose_widths(lengths, at_most, step)
    places = np.searchsorted(widths, np.asarray(lengths)[order])
    groups = []
    for place in reversed(range(len(widths))):
        members = tuple(order[places == place].tolist())
        width = min(widths[place], widest or widths[place])
        batches = -(-len(members) // max(1, tokens // width))
        groups.append(Group(-(-len(members) // batches), width, members))
    return groups
