"""What a model must not be given.

On a bad id torch poisons its process, JAX clamps in silence and Triton reads foreign memory, so that
every backend calls ``check_batch`` on the host, before anything reaches the device.
Shapes: B rows, T positions.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Integer

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


def check_batch(batch: Batch, *, context: int, vocab_size: int) -> None:
    """Refuse a batch that does not fit a model.

    Raises:
        ValueError: Naming the argument and the first value that does not fit.
    """
    shape = batch.tokens.shape
    if batch.tokens.ndim != 2 or not batch.tokens.size or shape[-1] > context:
        raise ValueError(f"tokens have shape {shape}, expected (B, T) with T <= context={context}")
    for name, values in (("targets", batch.targets), ("segment_starts", batch.segment_starts)):
        if values is not None and values.shape != shape:
            raise ValueError(f"{name} have shape {values.shape}, expected {shape}")
    check_ids("tokens", batch.tokens, 0, vocab_size)
    check_ids("targets", batch.targets, IGNORE, vocab_size)
    if batch.segment_starts is not None:
        starts, index = batch.segment_starts, np.arange(shape[1], dtype=np.int32)
        bad = (starts < 0) | (starts > index)
        if bad.any():
            row, at = (int(i) for i in np.argwhere(bad)[0])
            raise ValueError(
                f"segment_starts[{row}, {at}]={starts[row, at]}, expected from 0 to the position itself"
            )
