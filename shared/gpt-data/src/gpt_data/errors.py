"""What can go wrong with data, each with the exit status that a command ends with, and how it is said."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN_NAMES = 10
SHOWN_CHARACTERS = 80


class DataError(ValueError):
    """Data that cannot be used; one line that names the file and the value."""

    exit_status = 65


class DataWriteError(DataError):
    """A folder or a disk that does not take what is to be written; what was whole stays whole."""

    exit_status = 73


class DataStoppedError(DataError):
    """Preparation ended early; the same command goes on where it stopped."""

    exit_status = 75


def shown(value: object) -> str:
    """A value from a file as it may stand in a message: one short line, control characters escaped."""
    text = ascii(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def listed(names: Sequence[object]) -> str:
    """Names from a file as they may stand in a message: the first ten, and how many there are.

    >>> listed(["a", "b"])
    "'a', 'b'"
    >>> listed(range(12))
    '0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ... (12 in all)'
    """
    text = ", ".join(shown(name) for name in names[:SHOWN_NAMES])
    return text if len(names) <= SHOWN_NAMES else f"{text}, ... ({len(names)} in all)"
