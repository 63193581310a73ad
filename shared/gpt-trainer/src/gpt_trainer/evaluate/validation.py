"""Validation loss over a fixed set of rows, a token and a byte.  Shapes: V vocabulary."""

from __future__ import annotations

import math
from typing import NamedTuple

import bpe_scratch
import numpy as np
from gpt_data.batch import IGNORE
from gpt_data.loader import BatchLoader
from jaxtyping import Int32

from gpt_trainer.backend import Backend
from gpt_trainer.ranks.peers import Peers


class Evaluation(NamedTuple):
    """The mean loss in nats, the number of targets that it is over and how many bytes of text these are.

    ``bytes`` is None where the tokenizer is not known.
    """

    loss: float
    targets: int
    bytes: int | None = None

    @property
    def perplexity(self) -> float:
        """``exp(loss)``; infinite where that overflows."""
        try:
            return math.exp(self.loss)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """What the text takes, whatever the vocabulary: ends of documents cost bits and are no bytes."""
        return self.loss * self.targets / math.log(2.0) / self.bytes if self.bytes else None

    def __str__(self) -> str:
        perplexity = f"{self.perplexity:,.2f}" if self.perplexity < 1e6 else f"{self.perplexity:.2e}"
        bits = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.4f} bits per byte"
        return f"validation loss {self.loss:.4f}, perplexity {perplexity}{bits}"


def token_bytes(tokenizer: bpe_scratch.Tokenizer) -> Int32[np.ndarray, " V"]:
    """How many bytes of text each id stands for: none for a special token."""
    lengths = np.zeros(tokenizer.vocab_size, np.int32)
    tokens = tokenizer.vocabulary.tokens
    lengths[: len(tokens)] = [len(token or b"") for token in tokens]
    return lengths


def evaluate(
    backend: Backend,
    loader: BatchLoader,
    rows: int,
    peers: Peers,
    lengths: Int32[np.ndarray, " V"] | None = None,
) -> Evaluation | None:
    """Mean loss over the split's first rows, the same ones every time; None if asked to stop meanwhile.

    Args:
        rows: How many rows; all if there are fewer.
        peers: The processes, each of which takes its share of the rows.
        lengths: Bytes of each id; None if they are not known.
    """
    total, targets, size = 0.0, 0, 0
    for batch in loader.sequential(rows):
        if peers.agreed():
            return None
        loss, count = backend.evaluate(batch)
        total, targets = total + loss, targets + count
        size += 0 if lengths is None else int(lengths[batch.targets[batch.targets != IGNORE]].sum())
    told = peers.gather([total, targets, size], "the validation loss")
    total, targets, size = (sum(column) for column in zip(*told, strict=True))
    return Evaluation(total / max(1, targets), targets, None if lengths is None else size)
