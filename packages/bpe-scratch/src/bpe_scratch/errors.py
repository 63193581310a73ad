"""What can go wrong, by kind.

Every refusal is a ``ValueError`` whose one line names the place and the value.
"""

from __future__ import annotations


class TokenizerError(ValueError):
    """Any refusal of this package."""


class FileFormatError(TokenizerError):
    """A file says something impossible; the message names the file and the line or entry."""


class TextError(TokenizerError):
    """Text that has no UTF-8 form, or special text where it is refused; the message names the position."""


class TokenIdError(TokenizerError):
    """An id outside the vocabulary; the message names the id and its position."""


class WriteError(OSError):
    """A file that cannot be written; the message names it."""
