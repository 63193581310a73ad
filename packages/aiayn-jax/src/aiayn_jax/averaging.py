"""The mean of several checkpoints' weights.

References:
    Vaswani et al. 2017, section 6.1: the last 5 checkpoints of the base model, the last 20 of the big one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def average(checkpoints: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mean of each array over the checkpoints, summed in float64 and rounded once.

    Args:
        checkpoints: Arrays by name, as ``to_named`` gives them; at least one, all alike.

    Raises:
        ValueError: If there is none, or names, shapes or dtypes differ.
    """
    if not checkpoints:
        raise ValueError("checkpoints is empty, expected at least one")
    first = checkpoints[0]
    for number, other in enumerate(checkpoints[1:], start=1):
        if other.keys() != first.keys():
            raise ValueError(f"checkpoint {number} differs in {sorted(other.keys() ^ first.keys())}")
        for name, value in first.items():
            if (other[name].shape, other[name].dtype) != (value.shape, value.dtype):
                raise ValueError(
                    f"checkpoint {number}: {name} is {other[name].dtype} {other[name].shape}, "
                    f"expected {value.dtype} {value.shape}"
                )
    return {name: _mean([one[name] for one in checkpoints]) for name in first}


def _mean(values: list[np.ndarray]) -> np.ndarray:
    total = np.zeros(values[0].shape, np.float64)
    for value in values:
        total += value
    return (total / len(values)).astype(values[0].dtype)
