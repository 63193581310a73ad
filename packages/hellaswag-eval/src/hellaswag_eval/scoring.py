"""Log-probabilities of endings, from whatever gives log-probabilities of tokens.

Shapes: B rows, T positions, N endings of all examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.errors import CommandError, NonFiniteError
from jaxtyping import Float64

from hellaswag_eval.forks import Forked, MakeDecoder, can_share, score_forked
from hellaswag_eval.protocols import Example
from hellaswag_eval.rows import Row, pad, separate_rows
from hellaswag_eval.shapes import Group, group_rows

LogProbFn = Callable[[np.ndarray], np.ndarray]
"""Tokens [B, T], padded on the right with id 0, to log-probabilities [B, T] of the same tokens: entry
``[b, t]`` is ``log p(tokens[b, t] | tokens[b, :t])`` in nats. Column 0 and padding are not looked at."""
Scorer = Callable[[Batch], np.ndarray]
"""A batch to the log-probability of each target, [B, T]: a backend's ``log_probs``."""

Part = tuple[tuple[int, int], np.ndarray, np.ndarray]
"""A shape, the numbers of some endings, each at least once, and a float64 for each, to be summed."""

WIDTH_STEP = 32
TOKENS_PER_BATCH = 16_384
MOST_SHAPES = 8


class EvaluationStoppedError(CommandError):
    """The evaluation was asked to stop."""

    exit_status = 130


@dataclass(frozen=True)
class Plan:
    """How rows are batched; the results do not depend on it but for rounding.

    Attributes:
        tokens_per_batch: Positions of a batch, padding included.
        most_shapes: Different shapes, at most, for rows of one layout.
        width_step: What the rows' widths are multiples of.
        share: Whether the endings of an item share its context, if the model has decoders.
        on_progress: Told endings done and endings in all after every batch.
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
        shapes: Shapes (rows, width) of the batches: of rows, or of contexts that are shared.
    """

    log_probs: list[Float64[np.ndarray, " k"]]
    truncated: list[bool]
    shapes: list[tuple[int, int]]


def as_scorer(log_prob_fn: LogProbFn) -> Scorer:
    """A function of tokens as one of batches.

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


def score(
    scorer: Scorer,
    examples: Sequence[Example],
    context: int,
    plan: Plan,
    make_decoder: MakeDecoder | None = None,
) -> Scores:
    """Log-probabilities of all endings.

    Args:
        scorer: The model.
        examples: Questions.
        context: The model's context.
        plan: How to batch.
        make_decoder: Its decoders, without which no context is shared.

    Raises:
        InputError: If an ending is longer than the context.
        NonFiniteError: If a log-probability is not finite.
        EvaluationStoppedError: If asked to stop.
    """
    firsts = [0, *accumulate(len(example.endings) for example in examples)]
    forked, rows = _lay_out(examples, firsts, context, plan if make_decoder else replace(plan, share=False))
    total, shapes, done = np.zeros(firsts[-1]), set(), 0
    parts = chain(_forked(make_decoder, forked, plan), _separate(scorer, rows, context, plan))
    _may_go_on(plan, 0, firsts[-1])
    for shape, owners, values in parts:
        total += np.bincount(owners, values, len(total))
        shapes.add(shape)
        done += len(np.unique(owners))
        if plan.on_progress is not None:
            plan.on_progress(done, firsts[-1])
        _may_go_on(plan, done, firsts[-1])
    log_probs = [total[first:last] for first, last in pairwise(firsts)]
    _check_finite(examples, log_probs)
    truncated = [not can_share(example, context) for example in examples]
    return Scores(log_probs, truncated, sorted(shapes))


def _may_go_on(plan: Plan, done: int, everything: int) -> None:
    if done < everything and plan.should_stop is not None and plan.should_stop():
        raise EvaluationStoppedError(f"stopped after {done} of {everything} endings")


def _lay_out(
    examples: Sequence[Example], firsts: Sequence[int], context: int, plan: Plan
) -> tuple[list[Forked], list[Row]]:
    """What shares its context, and the rows of what does not: it is too long, or there is one ending."""
    forked: list[Forked] = []
    rows: list[Row] = []
    for example, first in zip(examples, firsts, strict=False):
        if plan.share and len(example.endings) > 1 and can_share(example, context):
            forked.append(Forked(example, first))
        else:
            rows += separate_rows(example, first, context)
    return forked, rows


def _forked(make_decoder: MakeDecoder | None, forked: Sequence[Forked], plan: Plan) -> Iterator[Part]:
    for group in _group([len(each.example.context) for each in forked], plan):
        assert make_decoder is not None
        endings = [ending for member in group.members for ending in forked[member].example.endings]
        room = group.width + max(map(len, endings))
        for members in group.batches():
            batch = [forked[member] for member in members]
            for owners, values in score_forked(make_decoder, batch, group.height, room):
                yield (group.height, group.width), owners, values


def _separate(scorer: Scorer, rows: Sequence[Row], context: int, plan: Plan) -> Iterator[Part]:
    for group in _group([len(row.tokens) for row in rows], plan, context):
        for members in group.batches():
            padded = pad([rows[member] for member in members], group.height, group.width)
            owned, values = padded.owners != IGNORE, scorer(padded.batch)
            yield padded.owners.shape, padded.owners[owned], values[owned].astype(np.float64)


def _group(lengths: list[int], plan: Plan, widest: int | None = None) -> list[Group]:
    return group_rows(
        lengths, tokens=plan.tokens_per_batch, at_most=plan.most_shapes, step=plan.width_step, widest=widest
    )


def _check_finite(examples: Sequence[Example], log_probs: Sequence[np.ndarray]) -> None:
    for example, values in zip(examples, log_probs, strict=True):
        if not np.isfinite(values).all():
            raise NonFiniteError(f"item {example.row}: log-probabilities {values.tolist()}")
