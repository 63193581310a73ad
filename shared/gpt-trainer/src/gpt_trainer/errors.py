"""What ends a run besides what ends any command: each error is one line for the user and an exit status."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_data.errors import CommandError, InputError, StoppedError, WriteError

__all__ = [
    "STOPPED",
    "CommandError",
    "InputError",
    "NonFiniteError",
    "PeerLostError",
    "StoppedError",
    "WriteError",
    "one_line",
]

STOPPED = StoppedError.exit_status
"""Exit status of a run that was asked to stop, saved a checkpoint and can be resumed."""
NAMED_FAULTS = 10


class NonFiniteError(CommandError):
    """The loss or a gradient is NaN or infinite."""

    exit_status = 70


class PeerLostError(CommandError):
    """Another process of the same run is gone."""

    exit_status = 69


def one_line(faults: Sequence[str]) -> str:
    """Faults as one line of bounded length: the first ten, and how many more there are.

    >>> one_line(["no x"] * 12)
    'no x; no x; no x; no x; no x; no x; no x; no x; no x; no x; and 2 more'
    """
    more = len(faults) - NAMED_FAULTS
    return "; ".join([*faults[:NAMED_FAULTS], *([f"and {more} more"] if more > 0 else [])])
