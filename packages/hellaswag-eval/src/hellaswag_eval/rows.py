"""Examples as rows of tokens: every ending behind a context of its own, or all behind one that they share.

Shapes: B rows, T positions, P length of the shared prefix.

Both layouts ask the same of the model. A token of an ending is predicted from all tokens of the context
and those of the ending before it; the first of them from the context's last token.
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
        segment_starts: As in ``gpt_data.batch.Batch``.
        prefix: Length P of the shared prefix.
        owners: For each position the number of the ending that its target belongs to, counted over all
            examples; ``IGNORE`` where there is no target.
    """

    tokens: Ids
    targets: Ids
    segment_starts: Ids
    prefix: int
    owners: Ids


def can_share(example: Example, context: int) -> bool:
    """Whether the context and each ending fit the model together, so that nothing has to be cut."""
    return len(example.context) + max(map(len, example.endings)) - 1 <= context


def shared_row(example: Example, first: int) -> Row:
    """The context once, and behind it the endings, none of which sees another.

    The prefix is the context without its last token, with which each ending begins anew.
    """
    context, endings = example.context, example.endings
    prefix = len(context) - 1
    lengths = [len(ending) for ending in endings]
    starts = prefix + np.concatenate(([0], np.cumsum(lengths)[:-1]))
    none = np.full(prefix, IGNORE)
    tokens = [context[:-1], *(np.concatenate((context[-1:], ending[:-1])) for ending in endings)]
    owners = [none, np.repeat(np.arange(first, first + len(endings)), lengths)]
    segment_starts = [np.zeros(prefix), np.repeat(starts, lengths)]
    return Row(_join(tokens), _join([none, *endings]), _join(segment_starts), prefix, _join(owners))


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
        np.zeros(len(whole) - 1, np.int32),
        0,
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


def pad(rows: Sequence[Row], height: int, width: int, *, shared: bool) -> PaddedRows:
    """Rows as one batch of ``height`` by ``width``; what is added has no target and is seen by nothing.

    Args:
        shared: Whether the rows have a prefix; otherwise each is one segment.
    """
    assert len(rows) <= height, (len(rows), height)
    tokens = np.zeros((height, width), np.int32)
    targets, owners = (np.full((height, width), IGNORE, np.int32) for _ in range(2))
    # a padded position sees only itself, so that its position in the model is never beyond the context
    starts = np.tile(np.arange(width, dtype=np.int32), (height, 1))
    prefixes = np.zeros(height, np.int32)
    for number, row in enumerate(rows):
        inside = slice(0, len(row.tokens))
        tokens[number, inside], targets[number, inside] = row.tokens, row.targets
        starts[number, inside], owners[number, inside] = row.segment_starts, row.owners
        prefixes[number] = row.prefix
    return PaddedRows(Batch(tokens, targets, *((starts, prefixes) if shared else ())), owners)
