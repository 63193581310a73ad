"""Log-probabilities of endings, from whatever gives log-probabilities of tokens.

Shapes: B rows, T positions, N endings of all examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.errors import CommandError, NonFiniteError
from jaxtyping import Float64

from hellaswag_eval.protocols import Example
from hellaswag_eval.rows import PaddedRows, Row, can_share, pad, separate_rows, shared_row
from hellaswag_eval.shapes import group_rows

LogProbFn = Callable[[np.ndarray], np.ndarray]
"""Tokens [B, T], padded on the right with id 0, to log-probabilities [B, T] of the same tokens: entry
``[b, t]`` is ``log p(tokens[b, t] | tokens[b, :t])`` in nats. Column 0 and padding are not looked at."""
Scorer = Callable[[Batch], np.ndarray]
"""A batch to the log-probability of each target, [B, T]: a backend's ``log_probs``."""

WIDTH_STEP = 32
TOKENS_PER_BATCH = 16_384
MOST_SHAPES = 8


class StoppedError(CommandError):
    """The evaluation was asked to stop."""

    exit_status = 130


@dataclass(frozen=True)
class Plan:
    """How rows are batched; the results do not depend on it but for rounding.

    Attributes:
        tokens_per_batch: Positions of a batch, padding included.
        most_shapes: Different shapes, at most, for rows of one layout.
        width_step: What the rows' widths are multiples of.
        share: Whether endings share their context in one row, if the model can.
        on_progress: Told rows done and rows in all after every batch.
        should_stop: Asked before every batch.

    Raises:
        ValueError: If a number is not positive.
    """

    tokens_per_batch: int = TOKENS_PER_BATCH
    most_shapes: int = MOST_SHAPES
    width_step: int = WIDTH_STEP
    share: bool = True
    on_progress: Callable[[int, int], None] | None = None
    should_stop: Callable[[], bool] | None = None

    def __post_init__(self) -> None:
        for name in ("tokens_per_batch", "most_shapes", "width_step"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")


class Scores(NamedTuple):
    """What was found for each example.

    Attributes:
        log_probs: For each example the summed log-probability of each ending.
        truncated: Whether its context was cut for any ending.
        shapes: Shapes (rows, width) that the model was given.
    """

    log_probs: list[Float64[np.ndarray, " k"]]
    truncated: list[bool]
    shapes: list[tuple[int, int]]


def as_scorer(log_prob_fn: LogProbFn) -> Scorer:
    """A function of tokens as one of batches whose rows have no prefix.

    Args:
        log_prob_fn: See ``LogProbFn``.
    """

    def score(batch: Batch) -> np.ndarray:
        # a row's targets are its own tokens, one further, but for the last, which is not among them
        following = np.pad(batch.tokens[:, 1:], ((0, 0), (0, 1)))
        following = np.where(batch.targets == IGNORE, following, batch.targets)
        tokens = np.concatenate([batch.tokens[:, :1], following], axis=1)
        values = np.asarray(log_prob_fn(tokens))
        if values.shape != tokens.shape:
            raise ValueError(f"log_prob_fn gave shape {values.shape} for tokens of shape {tokens.shape}")
        return np.where(batch.targets == IGNORE, 0.0, values[:, 1:])

    return score


def score(scorer: Scorer, examples: Sequence[Example], context: int, plan: Plan) -> Scores:
    """Log-probabilities of all endings.

    Args:
        scorer: The model.
        examples: Questions.
        context: The model's context.
        plan: How to batch; ``share`` needs a scorer that understands prefixes.

    Raises:
        InputError: If an ending is longer than the context.
        NonFiniteError: If a log-probability is not finite.
        StoppedError: If asked to stop.
    """
    firsts = [0, *accumulate(len(example.endings) for example in examples)]
    layouts = _lay_out(examples, firsts, context, plan)
    total = np.zeros(firsts[-1])
    shapes, done, rows = [], 0, sum(len(layout) for layout in layouts.values())
    for shared, layout in layouts.items():
        for count, padded in _batches(layout, context, plan, shared=shared):
            if plan.should_stop is not None and plan.should_stop():
                raise StoppedError(f"stopped after {done} of {rows} rows")
            _add(total, padded, scorer(padded.batch))
            shapes.append(padded.owners.shape)
            done += count
            if plan.on_progress is not None:
                plan.on_progress(done, rows)
    log_probs = [total[first:last] for first, last in pairwise(firsts)]
    _check_finite(examples, log_probs)
    truncated = [not can_share(example, context) for example in examples]
    return Scores(log_probs, truncated, sorted(set(shapes)))


def _lay_out(
    examples: Sequence[Example], firsts: Sequence[int], context: int, plan: Plan
) -> dict[bool, list[Row]]:
    """All rows, by whether they have a prefix."""
    layouts: dict[bool, list[Row]] = {True: [], False: []}
    for example, first in zip(examples, firsts, strict=False):
        if plan.share and can_share(example, context):
            layouts[True].append(shared_row(example, first))
        else:
            layouts[False] += separate_rows(example, first, context)
    return layouts


def _batches(
    layout: Sequence[Row], context: int, plan: Plan, *, shared: bool
) -> Iterator[tuple[int, PaddedRows]]:
    """Batches, each with the number of its rows that are not filling."""
    groups = group_rows(
        [len(row.tokens) for row in layout],
        tokens=plan.tokens_per_batch,
        at_most=plan.most_shapes,
        step=plan.width_step,
        widest=None if shared else context,
    )
    for group in groups:
        for members in group.batches():
            rows = [layout[member] for member in members]
            yield len(rows), pad(rows, group.height, group.width, shared=shared)


def _add(total: np.ndarray, padded: PaddedRows, values: np.ndarray) -> None:
    owned = padded.owners != IGNORE
    total += np.bincount(padded.owners[owned], values[owned].astype(np.float64), len(total))


def _check_finite(examples: Sequence[Example], log_probs: Sequence[np.ndarray]) -> None:
    for example, values in zip(examples, log_probs, strict=True):
        if not np.isfinite(values).all():
            raise NonFiniteError(f"item {example.row}: log-probabilities {values.tolist()}")
