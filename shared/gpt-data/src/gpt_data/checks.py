"""What a model must not be given.

On a bad id torch poisons its process, JAX clamps in silence and Triton reads foreign memory, so that
every backend calls ``check_batch`` on the host, before anything reaches the device.
Shapes: B rows, T positions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Int32, Integer

from gpt_data.batch import IGNORE, Batch


def check_ids(name: str, ids: Integer[np.ndarray, "..."], lowest: int, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary.

    Args:
        ids: Token ids or targets, not empty.

    Raises:
        ValueError: Naming the argument, the ids' span and the vocabulary.
    """
    if ids.min() < lowest or ids.max() >= vocab_size:
        raise ValueError(f"{name} span {ids.min()}..{ids.max()}, outside the vocabulary of {vocab_size}")


def check_batch(batch: Batch, *, context: int, vocab_size: int, training: bool = False) -> None:
    """Refuse a batch that does not fit a model.

    Raises:
        ValueError: Naming the argument and the first value that does not fit.
    """
    shape = batch.tokens.shape
    too_long = batch.prefix_lengths is None and shape[-1] > context
    if batch.tokens.ndim != 2 or not batch.tokens.size or too_long:
        raise ValueError(f"tokens have shape {shape}, expected (B, T) with T <= context={context}")
    for name, values, expected in (
        ("targets", batch.targets, shape),
        ("segment_starts", batch.segment_starts, shape),
        ("prefix_lengths", batch.prefix_lengths, shape[:1]),
    ):
        if values is not None and values.shape != expected:
            raise ValueError(f"{name} have shape {values.shape}, expected {expected}")
    check_ids("tokens", batch.tokens, 0, vocab_size)
    check_ids("targets", batch.targets, IGNORE, vocab_size)
    if batch.segment_starts is not None:
        index = np.arange(shape[1], dtype=np.int32)
        bad = (batch.segment_starts < 0) | (batch.segment_starts > index)
        _refuse("segment_starts", batch.segment_starts, bad, "from 0 to the position itself")
    if batch.prefix_lengths is not None:
        _check_prefixes(batch, context, training=training)


def _check_prefixes(batch: Batch, context: int, *, training: bool) -> None:
    """Continuations lie side by side behind their prefix, and none outgrows the context."""
    starts, lengths = batch.segment_starts, batch.prefix_lengths
    assert lengths is not None
    if training:
        raise ValueError(
            "prefix_lengths are for evaluation only: no backend takes gradients through a shared prefix; "
            "give each continuation a row with a prefix of its own"
        )
    if starts is None:
        raise ValueError("prefix_lengths need segment_starts, which say where each continuation begins")
    columns = starts.shape[1]
    bad = (lengths < 0) | (lengths > columns)
    _refuse("prefix_lengths", lengths, bad, f"from 0 to the row's length {columns}")
    inside = np.arange(columns, dtype=np.int32) < lengths[:, None]
    _refuse("segment_starts", starts, inside & (starts > 0), "0 within the prefix")
    behind = ~inside & (starts < lengths[:, None])
    _refuse("segment_starts", starts, behind, "at least the prefix's length behind it")
    returns = np.diff(starts, axis=1, prepend=0) < 0
    _refuse("segment_starts", starts, returns, "never less than the one before")
    opened = np.take_along_axis(starts, starts, 1) == starts
    _refuse("segment_starts", starts, ~opened, "a position that begins a continuation")
    positions = batch.positions
    _refuse("positions", positions, positions >= context, f"below context={context}")


def _refuse(
    name: str, values: Int32[np.ndarray, "*shape"], bad: Bool[np.ndarray, "*shape"], expected: str
) -> None:
    """Raise for the first bad value, if there is one."""
    if bad.any():
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(f"{name}[{', '.join(map(str, at))}]={values[at]}, expected {expected}")
