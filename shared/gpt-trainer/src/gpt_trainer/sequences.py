"""What a decoder knows of its sequences without a framework: how long they are, and what may follow.

Shapes: B sequences, n new tokens of each, R sequences of a fork.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from gpt_data.batch import IGNORE
from gpt_data.checks import check_ids
from jaxtyping import Int, Int32

from gpt_trainer.model_config import ModelConfig


@dataclass
class Sequences:
    """Sequences that grow together, each behind a filling of its own.

    Attributes:
        config: The model's sizes.
        room: Tokens there is room for, filling included.
        filling: How many of each sequence's first tokens nothing sees.
        length: Tokens so far, filling included.
    """

    config: ModelConfig
    room: int
    filling: Int32[np.ndarray, " B"]
    length: int = 0

    @classmethod
    def begin(
        cls, config: ModelConfig, rows: int, room: int | None, filling: Int[np.ndarray, " B"] | None
    ) -> Sequences:
        """``rows`` empty sequences; see ``gpt_trainer.backend.Backend.decoder``.

        Raises:
            ValueError: If ``rows`` or ``room`` is not positive, or ``filling`` is no number for each row.
        """
        room = config.context if room is None else room
        for name, value in (("rows", rows), ("room", room)):
            if value < 1:
                raise ValueError(f"{name}={value} is not positive")
        filling = np.zeros(rows, np.int32) if filling is None else filling.astype(np.int32)
        if filling.shape != (rows,) or filling.min() < 0:
            raise ValueError(f"filling={filling.tolist()}, expected {rows} numbers from 0")
        return cls(config, room, filling)

    def append(
        self, tokens: Int[np.ndarray, "B n"], targets: Int[np.ndarray, "B _"] | None = None
    ) -> Int32[np.ndarray, "4 B n"]:
        """Count new tokens in.

        Args:
            targets: What is to be predicted; only what a target depends on is held to the context then.

        Returns:
            Of each its id; its position in the model, the nearest there is for filling; the slot of the cache
            that it goes to; and the first slot that it sees: no filling is seen, but by itself.

        Raises:
            ValueError: If the sequences would outgrow the context or the room, or a shape or an id is wrong.
        """
        self._check(tokens, targets)
        count = tokens.shape[1]
        ends = count if targets is None else _ends(targets)
        for name, more, limit in (
            ("context", int((ends - self.filling).max()), self.config.context),
            ("room", count, self.room),
        ):
            if self.length + more > limit:
                raise ValueError(f"{self.length} + {more} tokens outgrow the {name} of {limit}")
        slots = np.broadcast_to(np.arange(self.length, self.length + count), tokens.shape)
        self.length += count
        positions = np.clip(slots - self.filling[:, None], 0, self.config.context - 1)
        first = np.minimum(self.filling[:, None], slots)
        return np.stack((tokens, positions, slots, first), dtype=np.int32)

    def fork(self, rows: Int[np.ndarray, " R"]) -> Sequences:
        """Sequence ``rows[r]`` for each r, as it is now.

        Raises:
            ValueError: If there is none, or one that there is not.
        """
        if rows.ndim != 1 or not rows.size or rows.min() < 0 or rows.max() >= len(self.filling):
            raise ValueError(f"rows={rows.tolist()}, expected some from 0 to {len(self.filling) - 1}")
        return replace(self, filling=self.filling[rows])

    def _check(self, tokens: np.ndarray, targets: np.ndarray | None) -> None:
        rows, shape = len(self.filling), tokens.shape
        if tokens.ndim != 2 or shape[0] != rows or shape[1] < 1:
            raise ValueError(f"tokens have shape {shape}, expected ({rows}, n) with n >= 1")
        check_ids("tokens", tokens, 0, self.config.vocab_size)
        if targets is not None:
            if targets.shape != shape:
                raise ValueError(f"targets have shape {targets.shape}, expected {shape}")
            check_ids("targets", targets, IGNORE, self.config.vocab_size)


def _ends(targets: Int[np.ndarray, "B n"]) -> Int[np.ndarray, " B"]:
    """How many of each row's tokens a target depends on."""
    scored = targets != IGNORE
    return np.where(scored.any(1), targets.shape[1] - scored[:, ::-1].argmax(1), 0)
