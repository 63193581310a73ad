# ruff: noqa: ARG001 - Numba fixes the parameters of an intrinsic
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""From UTF-8 to characters of one width: ASCII sixteen at a time, the rest one by one and checked.

``kind`` is the width of a character in bytes: 1, 2 or 4, as in Python's own strings.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types

from bpe_scratch.compiled.kernel import inner
from bpe_scratch.compiled.memory import intrinsic, load8, store8, store16, store32

SLOT = 16
"""Characters that are widened at once."""
BAD = -1


def _widener(bits: int) -> Any:
    def widen(typing: Any, source: Any, target: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            narrow, wide = (ir.VectorType(ir.IntType(width), SLOT) for width in (8, bits))
            slot = builder.load(builder.inttoptr(args[0], narrow.as_pointer()), align=8)
            place = builder.inttoptr(args[1], wide.as_pointer())
            builder.store(slot if bits == 8 else builder.zext(slot, wide), place, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return intrinsic(widen)


_widen8, _widen16, _widen32 = _widener(8), _widener(16), _widener(32)


@inner
def widen_slot(slot, units, at, kind):
    """Write the sixteen bytes of an address from unit ``at`` on."""
    target = units + at * kind
    if kind == 1:
        _widen8(slot, target)
    elif kind == 2:
        _widen16(slot, target)
    else:
        _widen32(slot, target)


@inner
def _store(units, at, character, kind):
    if kind == 1:
        store8(units, at, character)
    elif kind == 2:
        store16(units, at, character)
    else:
        store32(units, at, character)


@inner
def _character(text, i, size):
    """``(code point, bytes)`` of the character at ``i``.

    The code point is ``BAD`` where the Unicode standard, table 3-7, allows none; no bytes if it is cut off.
    """
    lead = load8(text, i)
    if lead < 0x80:
        return lead, 1
    if lead < 0xC2 or lead > 0xF4:
        return BAD, 1
    width = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    if i + width > size:
        return BAD, 0
    character = lead & (0x7F >> width)
    for k in range(1, width):
        byte = load8(text, i + k)
        if byte & 0xC0 != 0x80:
            return BAD, 1
        character = character << 6 | byte & 0x3F
    # longer than need be, a surrogate, or beyond the last code point
    short = (width == 3 and character < 0x800) or (width == 4 and character < 0x10000)
    if short or 0xD800 <= character < 0xE000 or character > 0x10FFFF:
        return BAD, 1
    return character, width


@inner
def to_units(text, size, units, at, kind):
    """Write the characters of ``size`` bytes from unit ``at`` on; returns ``(bytes read, end)``.

    A character that is cut off at the end is left; ``bytes read`` is ``BAD`` if the text is not UTF-8. All
    characters must fit ``kind``.
    """
    i = 0
    while i < size:
        character, width = _character(text, i, size)
        if character == BAD:
            return (BAD, at) if width else (i, at)
        _store(units, at, character, kind)
        at += 1
        i += width
    return size, at
