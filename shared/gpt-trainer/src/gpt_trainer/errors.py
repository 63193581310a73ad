"""Errors that end a run with one line for the user, and the exit status that goes with each.

The statuses are those of BSD's ``sysexits.h`` where it has one: a script can tell a run to resume
(75) from bad input (65) without reading messages.
"""

from __future__ import annotations

from collections.abc import Sequence

STOPPED = 75
"""Exit status of a run that was asked to stop, saved a checkpoint and can be resumed."""
NAMED_FAULTS = 10


class TrainerError(Exception):
    """An error whose message is one line for the user.

    Attributes:
        exit_status: Status with which a command ends when nothing catches the error.
    """

    exit_status = 1


class InputError(TrainerError, ValueError):
    """Something that was to be read is missing, damaged or does not fit."""

    exit_status = 65


class WriteError(TrainerError):
    """Something cannot be written: no space, no permission, or the folder belongs to another process."""

    exit_status = 73


class NonFiniteError(TrainerError):
    """The loss or a gradient is NaN or infinite."""

    exit_status = 70


def one_line(faults: Sequence[str]) -> str:
    """Faults as one line of bounded length: the first ten, and how many more there are.

    >>> one_line(["no x"] * 12)
    'no x; no x; no x; no x; no x; no x; no x; no x; no x; no x; and 2 more'
    """
    more = len(faults) - NAMED_FAULTS
    return "; ".join([*faults[:NAMED_FAULTS], *([f"and {more} more"] if more > 0 else [])])


class PeerLostError(TrainerError):
    """Another process of the same run is gone."""

    exit_status = 69
