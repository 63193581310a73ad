"""Scoring a model: one that is a function of tokens, or one of our backends, by the faster way it has."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol as Interface
from typing import runtime_checkable

import numpy as np
from gpt_data.batch import Batch
from gpt_trainer.backend import Decoder
from gpt_trainer.model_config import ModelConfig

from hellaswag_eval.forks import MakeDecoder
from hellaswag_eval.protocols import Example, Protocol
from hellaswag_eval.results import Evaluation, judge
from hellaswag_eval.scoring import LogProbFn, Plan, Scorer, as_scorer, score


@runtime_checkable
class GivesLogProbs(Interface):
    """What is asked of a ``gpt_trainer.backend.Backend``; shapes: B rows, T positions."""

    config: ModelConfig

    def log_probs(self, batch: Batch) -> np.ndarray:
        """Log-probability [B, T] of each target given what its position may see; 0 where ignored."""
        ...

    def decoder(self, rows: int, *, room: int | None = None, filling: np.ndarray | None = None) -> Decoder:
        """A decoder of sequences of unequal lengths."""
        ...


def evaluate(
    log_prob_fn: LogProbFn,
    examples: Sequence[Example],
    *,
    context: int = 1024,
    protocol: Protocol = "completion",
    plan: Plan | None = None,
) -> Evaluation:
    """Score anything that gives log-probabilities.

    Args:
        log_prob_fn: Maps tokens, int32 [B, T] with T at most ``context + 1`` and padded on the right with
            id 0, to log-probabilities [B, T]: entry ``[b, t]`` is ``log p(tokens[b, t] | tokens[b, :t])``
            in nats. Column 0 and the padding are not looked at.
        examples: Encoded questions, as ``encode_items`` makes them for a protocol.
        context: Most tokens that the model reads; of a longer context the end is kept, and counted.
        protocol: The one that the examples were encoded for.
        plan: How to batch.

    Raises:
        InputError: If an ending alone is longer than the context.
        NonFiniteError: If a log-probability is not finite.
        EvaluationStoppedError: If the plan's ``should_stop`` says so.
        ValueError: If there is no example, or the function's result has the wrong shape.
    """
    return _evaluate(as_scorer(log_prob_fn), examples, context, protocol, plan or Plan(), None)


def evaluate_backend(
    backend: GivesLogProbs,
    examples: Sequence[Example],
    *,
    protocol: Protocol = "completion",
    plan: Plan | None = None,
) -> Evaluation:
    """Score one of our backends, which reads the context of an item's endings only once.

    Args:
        backend: The model.
        examples: Encoded questions, as ``encode_items`` makes them for a protocol.
        protocol: The one that the examples were encoded for.
        plan: How to batch.

    Raises:
        InputError: If an ending alone is longer than the model's context.
        NonFiniteError: If a log-probability is not finite.
        EvaluationStoppedError: If the plan's ``should_stop`` says so.
        ValueError: If there is no example.
    """
    context = backend.config.context
    return _evaluate(backend.log_probs, examples, context, protocol, plan or Plan(), backend.decoder)


def _evaluate(
    scorer: Scorer,
    examples: Sequence[Example],
    context: int,
    protocol: Protocol,
    plan: Plan,
    make_decoder: MakeDecoder | None,
) -> Evaluation:
    _check(examples)
    began = time.perf_counter()
    scores = score(scorer, examples, context, plan, make_decoder)
    seconds = time.perf_counter() - began
    return Evaluation(protocol, judge(examples, scores, protocol), scores.shapes, seconds)


def _check(examples: Sequence[Example]) -> None:
    if not examples:
        raise ValueError("examples is empty, expected at least one")
    for example in examples:
        lengths = {len(example.endings), len(example.characters), len(example.utf8_bytes)}
        if len(lengths) != 1 or not all(map(len, (example.context, *example.endings))):
            raise ValueError(f"example of row {example.row} is incomplete; make it with encode_items")
