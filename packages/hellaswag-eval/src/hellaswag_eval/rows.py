"""Examples as rows of tokens: every ending behind a context of its own.

A token of an ending is predicted from all tokens of the context and those of the ending before it; the
first of them from the context's last token. Shapes: B rows, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.errors import InputError
from jaxtyping import Int32

from hellaswag_eval.protocols import Example, Ids


class Row(NamedTuple):
    """One row before it is padded.

    Attributes:
        tokens: What the model reads.
        targets: What it is to predict; ``IGNORE`` within the context.
        owners: For each position the number of the ending that its target belongs to, counted over all
            examples; ``IGNORE`` where there is no target.
    """

    tokens: Ids
    targets: Ids
    owners: Ids


def separate_rows(example: Example, first: int, context: int) -> list[Row]:
    """A row for each ending; of a context that is too long the end is kept.

    Raises:
        InputError: If an ending alone is longer than that.
    """
    return [_separate_row(example, number, first + number, context) for number in range(len(example.endings))]


def _separate_row(example: Example, number: int, owner: int, context: int) -> Row:
    ending = example.endings[number]
    if len(ending) > context:
        raise InputError(
            f"item {example.row}: ending {number} has {len(ending)} tokens, the model's context is {context}"
        )
    # the last token is only predicted, so that one more than the context fits
    whole = np.concatenate((example.context, ending))[-(context + 1) :]
    none = np.full(len(whole) - 1 - len(ending), IGNORE)
    return Row(
        _join([whole[:-1]]),
        _join([none, ending]),
        _join([none, np.full(len(ending), owner)]),
    )


def _join(parts: Sequence[np.ndarray]) -> Ids:
    return np.concatenate(parts).astype(np.int32)


class PaddedRows(NamedTuple):
    """A batch, and whose its targets are.

    Attributes:
        batch: For the model.
        owners: As in ``Row``.
    """

    batch: Batch
    owners: Int32[np.ndarray, "B T"]


def pad(rows: Sequence[Row], height: int, width: int) -> PaddedRows:
    """Rows as one batch of ``height`` by ``width``; what is added stands on the right and has no target."""
    assert len(rows) <= height, (len(rows), height)
    tokens = np.zeros((height, width), np.int32)
    targets, owners = (np.full((height, width), IGNORE, np.int32) for _ in range(2))
    for number, row in enumerate(rows):
        inside = slice(0, len(row.tokens))
        tokens[number, inside], targets[number, inside] = row.tokens, row.targets
        owners[number, inside] = row.owners
    return PaddedRows(Batch(tokens, targets), owners)
