"""Endings behind a context that is read once: through a decoder, which is forked for them.

Contexts are filled up on the left, so that they end together. A context's last token goes with each of its
endings, whose first token is predicted from it.

Shapes: B contexts, P tokens of the longest, R endings at a time, n tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from gpt_data.batch import IGNORE
from gpt_trainer.backend import Decoder

from hellaswag_eval.protocols import Example, Ids

MakeDecoder = Callable[..., Decoder]
"""``gpt_trainer.backend.Backend.decoder``."""
PARTS = 16
"""Endings of a batch go in so many parts, sorted by length, so that few are filled up by much."""
AT_LEAST = 8
"""Endings of a part: fewer make products too narrow to be worth the reading of a weight."""


class Forked(NamedTuple):
    """An example whose endings share its context, and the number of the first of them."""

    example: Example
    first: int


class Ending(NamedTuple):
    """An ending of a batch.

    Attributes:
        row: Its context's.
        number: Its place among the endings of all examples.
        tokens: What the model reads.
        targets: What it is to predict.
    """

    row: int
    number: int
    tokens: Ids
    targets: Ids


def can_share(example: Example, context: int) -> bool:
    """Whether the context and each ending fit the model together, so that nothing has to be cut."""
    return len(example.context) + max(map(len, example.endings)) - 1 <= context


def score_forked(
    make_decoder: MakeDecoder, batch: Sequence[Forked], height: int, room: int
) -> Iterator[tuple[Ids, np.ndarray]]:
    """Log-probabilities of all endings, part by part: their numbers, and a float64 for each.

    Args:
        batch: At most ``height``; what is missing is filled up, so that all of a group's are of one shape.
        room: Tokens of the longest context and the longest ending, at least.
    """
    prefixes = [each.example.context[:-1] for each in batch]
    width = max(map(len, prefixes))
    filling, tokens = np.full(height, width, np.int32), np.zeros((height, width), np.int32)
    for row, prefix in enumerate(prefixes):
        filling[row] = width - len(prefix)
        tokens[row, filling[row] :] = prefix
    decoder = make_decoder(height, room=room, filling=filling)
    if width:
        decoder.log_probs(tokens, np.full_like(tokens, IGNORE))
    endings = [ending for row, each in enumerate(batch) for ending in _endings(row, *each)]
    endings.sort(key=lambda ending: -len(ending.tokens))
    most = height * max(len(each.example.endings) for each in batch)
    lanes = -(-most // min(PARTS, max(1, most // AT_LEAST)))
    for at in range(0, len(endings), lanes):
        yield _score_part(decoder, endings[at : at + lanes], lanes)


def _endings(row: int, example: Example, first: int) -> Iterator[Ending]:
    for number, ids in enumerate(example.endings, start=first):
        yield Ending(row, number, np.concatenate((example.context[-1:], ids[:-1])), ids)


def _score_part(decoder: Decoder, part: Sequence[Ending], lanes: int) -> tuple[Ids, np.ndarray]:
    rows, width = np.zeros(lanes, np.int32), max(len(ending.tokens) for ending in part)
    tokens = np.zeros((lanes, width), np.int32)
    targets = np.full_like(tokens, IGNORE)
    for line, ending in enumerate(part):
        inside = slice(0, len(ending.tokens))
        rows[line], tokens[line, inside], targets[line, inside] = ending.row, ending.tokens, ending.targets
    values = decoder.fork(rows).log_probs(tokens, targets)
    numbers = np.array([ending.number for ending in part], np.int32)
    return numbers, values[: len(part)].sum(axis=1, dtype=np.float64)
