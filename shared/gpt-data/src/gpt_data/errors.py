"""What ends a command with one line for the user, the exit status that goes with it, and how it is said.

The statuses are those of BSD's ``sysexits.h`` where it has one: a script can tell a run to resume (75) from
bad input (65) without reading messages.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SHOWN_NAMES = 10
SHOWN_CHARACTERS = 80


class CommandError(Exception):
    """An error whose message is one line for the user.

    Attributes:
        exit_status: Status with which a command ends when nothing catches the error.
    """

    exit_status = 1


class InputError(CommandError, ValueError):
    """Something that was to be read is missing, damaged or does not fit."""

    exit_status = 65


class WriteError(CommandError):
    """Something cannot be written: no space, no permission, or the folder belongs to another process."""

    exit_status = 73


class StoppedError(CommandError):
    """Work ended early; the same command goes on where it stopped."""

    exit_status = 75


@contextmanager
def naming(where: object = "") -> Iterator[None]:
    """Within, a ``ValueError`` is an ``InputError``, in the name of a file or a flag if there is one."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{where}: {error}" if where else str(error)) from None


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its kind if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


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
