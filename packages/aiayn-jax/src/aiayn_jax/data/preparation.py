"""From a source of pairs to batches: read, learn the vocabulary, encode, choose shapes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import bpe_scratch
import numpy as np
from gpt_trainer.origin import parse_tokenizer

from aiayn_jax.data.batches import BatchPlan, choose_shapes
from aiayn_jax.data.sentences import TokenPairs, encode_pairs, learn_tokenizer
from aiayn_jax.data.sources import Corpus
from aiayn_jax.settings import RunConfig


class Prepared(NamedTuple):
    """What a run learns from.

    Attributes:
        corpus: The text, without that of the training pairs.
        tokenizer: The joint BPE.
        train: Training batches by step.
        val: Validation batches.
        notes: What the user should know, one line each.
    """

    corpus: Corpus
    tokenizer: bpe_scratch.Tokenizer
    train: BatchPlan
    val: BatchPlan
    notes: list[str]

    def identity(self) -> dict[str, Any]:
        """What tells other data, another tokenizer or another order apart."""
        return {
            "tokens_sha256": self.train.pairs.sha256,
            "val_tokens_sha256": self.val.pairs.sha256,
            "tokenizer_sha256": self.tokenizer.sha256,
            "shapes": [list(shape) for shape in self.train.shapes],
        }


def prepare(corpus: Corpus, config: RunConfig, tokenizer_json: bytes | None = None) -> Prepared:
    """Encode a corpus and arrange its batches.

    Args:
        tokenizer_json: A tokenizer that exists; learned from the training pairs if None.

    Raises:
        InputError: If the vocabulary is too small, no pair is short enough, or the tokenizer cannot be read.
    """
    if tokenizer_json is None:
        tokenizer = learn_tokenizer(corpus.train, config.data.vocab, corpus.pattern)
    else:
        tokenizer = parse_tokenizer(tokenizer_json, "the checkpoint")
    longest = config.model.longest
    train, notes = encode_pairs(tokenizer, corpus.train, longest, "training")
    val, more = encode_pairs(tokenizer, corpus.val, longest, "validation")
    shapes = _shapes(train, val, config)
    plans = BatchPlan(train, shapes, config.runtime.seed), BatchPlan(val, shapes, config.runtime.seed)
    # the text that was learned from is not needed again
    corpus = replace(corpus, train=corpus.train.first(0))
    return Prepared(corpus, tokenizer, *plans, [*corpus.notes, *notes, *more, describe(plans[0])])


def _shapes(train: TokenPairs, val: TokenPairs, config: RunConfig) -> list[Any]:
    """Shapes for both parts, so that validation compiles nothing that training does not."""
    source, target = (
        np.concatenate([getattr(part, side).lengths for part in (train, val)])
        for side in ("source", "target")
    )
    batch, longest = config.batch, config.model.longest
    shapes = choose_shapes(
        source, target, tokens=batch.batch_tokens, buckets=batch.buckets, multiple=batch.width_multiple
    )
    # a multiple may lie beyond the model's positions, where no token is
    return [s._replace(source=min(s.source, longest), target=min(s.target, longest)) for s in shapes]


def describe(plan: BatchPlan) -> str:
    """The shapes of batches, and what share of them is filled up."""
    shapes = ", ".join(f"{shape.rows}x({shape.source}+{shape.target})" for shape in plan.shapes)
    return (
        f"batches: {plan.batches_per_epoch:,} an epoch in {len(plan.shapes)} shapes {shapes}; "
        f"{plan.filled_share:.0%} of the positions are filled up"
    )
