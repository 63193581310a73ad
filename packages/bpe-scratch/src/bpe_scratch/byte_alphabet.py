"""GPT-2's printable stand-ins for the 256 bytes.

A vocabulary file holds text, but a token is bytes. GPT-2 writes each byte as one printable character: the
188 printable ones of Latin-1 stand for themselves, the other 68 become U+0100, U+0101, ... in byte order.
The ids of the single bytes follow the same order: first the printable ones, then the rest.
"""

from __future__ import annotations

from bpe_scratch.errors import TokenizerError

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHER = tuple(b for b in range(256) if b not in _PRINTABLE)

BYTES_IN_ID_ORDER: tuple[int, ...] = _PRINTABLE + _OTHER
BYTE_TO_CHAR: dict[int, str] = {b: chr(b) for b in _PRINTABLE} | {
    b: chr(256 + i) for i, b in enumerate(_OTHER)
}
CHAR_TO_BYTE: dict[str, int] = {char: byte for byte, char in BYTE_TO_CHAR.items()}


def to_printable(token: bytes) -> str:
    """One character per byte, as vocabulary files hold it: ``b" a"`` becomes ``"Ġa"``."""
    return "".join([BYTE_TO_CHAR[b] for b in token])


def from_printable(text: str) -> bytes:
    """The inverse of :func:`to_printable`.

    Raises:
        TokenizerError: If a character stands for no byte.
    """
    try:
        return bytes([CHAR_TO_BYTE[char] for char in text])
    except KeyError as missing:
        raise TokenizerError(f"token {text[:60]!r}: {missing.args[0]!r} stands for no byte") from None
