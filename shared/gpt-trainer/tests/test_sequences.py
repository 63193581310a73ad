"""Sequences of a decoder: positions behind a filling, limits, forks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gpt_data.batch import IGNORE
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.sequences import Sequences

CONFIG = ModelConfig(n_layer=1, n_head=1, d_model=2, context=6, vocab_size=9)


def begin(room: int | None = None, filling: tuple[int, ...] = (2, 0)) -> Sequences:
    return Sequences.begin(CONFIG, 2, room, np.array(filling))


def some(columns: int, rows: int = 2) -> np.ndarray:
    return np.zeros((rows, columns), np.int64)


def test_positions_are_counted_behind_the_filling() -> None:
    sequences = begin(8)
    tokens, positions, slots, first = sequences.append(some(4) + 7)
    assert (tokens == 7).all()
    assert positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert slots.tolist() == [[0, 1, 2, 3]] * 2
    # filling is seen by itself alone
    assert first.tolist() == [[0, 1, 2, 2], [0, 0, 0, 0]]
    assert sequences.append(some(1))[1:].tolist() == [[[2], [4]], [[4], [4]], [[2], [0]]]
    # what no target depends on has the context's last position
    targets = np.array([[3, 3, 3], [3, IGNORE, IGNORE]])
    assert sequences.append(some(3), targets)[1].tolist() == [[3, 4, 5], [5, 5, 5]]
    assert sequences.length == 8
    assert Sequences.begin(CONFIG, 2, None, None).append(some(6))[1].tolist() == [[*range(6)]] * 2


def test_a_fork_goes_on_by_itself() -> None:
    sequences = begin()
    sequences.append(some(3))
    fork = sequences.fork(np.array([1, 0, 0]))
    assert fork.append(some(1, rows=3))[1].tolist() == [[3], [1], [1]]
    assert (sequences.length, fork.length, fork.filling.tolist()) == (3, 4, [0, 2, 2])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: begin().append(some(7)), r"0 \+ 7 tokens outgrow the context of 6"),
        (lambda: begin(4).append(some(5)), r"0 \+ 5 tokens outgrow the room of 4"),
        (lambda: begin(9).append(some(7), some(7)), r"0 \+ 7 tokens outgrow the context of 6"),
        (lambda: begin().append(some(1, rows=3)), r"tokens have shape \(3, 1\), expected \(2, n\)"),
        (lambda: begin().append(some(0)), r"tokens have shape \(2, 0\)"),
        (lambda: begin().append(some(2) + 9), r"tokens span 9..9, outside the vocabulary of 9"),
        (lambda: begin().append(some(2), some(2) - 2), r"targets span -2..-2"),
        (lambda: begin().append(some(2), some(3)), r"targets have shape \(2, 3\), expected \(2, 2\)"),
        (lambda: begin(filling=(0, -1)), r"filling=\[0, -1\], expected 2 numbers from 0"),
        (lambda: begin(filling=(0,)), r"filling=\[0\], expected 2 numbers"),
        (lambda: begin(0), "room=0 is not positive"),
        (lambda: Sequences.begin(CONFIG, 0, None, None), "rows=0 is not positive"),
        (lambda: begin().fork(np.array([0, 2])), r"rows=\[0, 2\], expected some from 0 to 1"),
        (lambda: begin().fork(np.array([], int)), r"rows=\[\], expected some"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
