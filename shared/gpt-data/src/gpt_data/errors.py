"""What can go wrong with data, each with the exit status that a command ends with."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; one line that names the file and the value."""

    exit_status = 65


class DataWriteError(DataError):
    """A folder or a disk that does not take what is to be written; what was whole stays whole."""

    exit_status = 73


class DataStoppedError(DataError):
    """Preparation ended early; the same command goes on where it stopped."""

    exit_status = 75
