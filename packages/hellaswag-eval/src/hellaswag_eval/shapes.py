"""Few static shapes for rows of many lengths, so that a compiled backend compiles each of them once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from gpt_data.widths import choose_widths


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
