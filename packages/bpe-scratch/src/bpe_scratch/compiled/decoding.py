# ruff: noqa: ARG001 - Numba fixes the parameters of an intrinsic
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""From ids to bytes or characters: add up the lengths, then copy sixteen bytes at a time.

Tables of one vocabulary, by id:

    sums   [ids] uint64: bytes of the token, characters that begin in it << 32, their widths << 61; or UNKNOWN
    slots  [ids, 16] uint8: a token of up to 15 bytes, its length last; or LONG there
    spans  [ids, 2] int64: start and length in ``blob``, all tokens one after another

Kernels take addresses, or one would be compiled for arrays that may be written and one for others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import intrinsic, load8, load32, load64, store8, store16, store32
from bpe_scratch.compiled.python_lists import (
    forget_error,
    hold_interpreter,
    list_number,
    release_interpreter,
)
from bpe_scratch.compiled.text_units import BAD, to_units

UNKNOWN = np.uint64(0xFFFFFFFFFFFFFFFF)
LONG = 16
SLOT = 16
_LOW32, _LOW29 = np.uint64(0xFFFFFFFF), np.uint64((1 << 29) - 1)
_32, _61 = np.uint64(32), np.uint64(61)


@intrinsic
def load16(typing: Any, base: Any, index: Any) -> Any:
    """uint16 number ``i`` as int64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.add(args[0], builder.shl(args[1], ir.IntType(64)(1)))
        value = builder.load(builder.inttoptr(place, ir.IntType(16).as_pointer()), align=2)
        return builder.zext(value, ir.IntType(64))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def copy_slot(typing: Any, slot: Any, target: Any) -> Any:
    """Copy the sixteen bytes of a slot to an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        slot, target = (builder.inttoptr(place, ir.IntType(128).as_pointer()) for place in args)
        builder.store(builder.load(slot, align=8), target, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@inner
def _load_id(ids, position, narrow):
    return load16(ids, position) if narrow else load32(ids, position)


@kernel
def measure(ids, narrow, number, sums, size):
    """``(bytes, characters, widths, -1)``, or the position of the first id that is unknown instead of -1."""
    length, characters, widths = np.uint64(0), np.uint64(0), np.uint64(0)
    for position in range(number):
        index = _load_id(ids, position, narrow)
        if index < 0 or index >= size:
            return 0, 0, 0, position
        entry = load64(sums, index)
        if entry == UNKNOWN:
            return 0, 0, 0, position
        length += entry & _LOW32
        characters += entry >> _32 & _LOW29
        widths |= entry
    return np.int64(length), np.int64(characters), np.int64(widths >> _61), -1


@kernel
def measure_list(numbers, narrow, number, sums, size, ids):
    """The same of a Python list at an address; writes its ids, as uint16 or uint32."""
    length, characters, widths, bad = np.uint64(0), np.uint64(0), np.uint64(0), -1
    state = hold_interpreter()
    for position in range(number):
        index = list_number(numbers, position)
        if index < 0 or index >= size or load64(sums, index) == UNKNOWN:
            forget_error()
            bad = position
            break
        entry = load64(sums, index)
        length += entry & _LOW32
        characters += entry >> _32 & _LOW29
        widths |= entry
        if narrow:
            store16(ids, position, index)
        else:
            store32(ids, position, index)
    release_interpreter(state)
    return np.int64(length), np.int64(characters), np.int64(widths >> _61), bad


@inner
def _copy_tokens(ids, narrow, number, position, slots, spans, blob, out, size):
    """Write tokens from ``position`` on, as many as fit ``size`` bytes; returns ``(position, bytes)``."""
    end = 0
    while position < number:
        index = _load_id(ids, position, narrow)
        length = load8(slots, index * SLOT + SLOT - 1)
        if length < LONG and end + SLOT <= size:
            copy_slot(slots + index * SLOT, out + end)
        else:
            start = np.int64(load64(spans, 2 * index))
            length = np.int64(load64(spans, 2 * index + 1))
            if end + length > size:
                break
            for k in range(length):
                store8(out, end + k, load8(blob, start + k))
        end += length
        position += 1
    return position, end


@kernel
def copy_tokens(ids, narrow, number, slots, spans, blob, out, size):
    """Write the bytes of known ids, ``size`` in all and not one more."""
    _copy_tokens(ids, narrow, number, 0, slots, spans, blob, out, size)


@kernel
def decode_block(ids, narrow, number, position, slots, spans, blob, text, left, size, units, at, kind):
    """Decode known ids from ``position`` on into a block of ``size`` bytes, and those into characters.

    Returns ``(position, bytes left, end)``: what is left of a character that is cut off stands at the start
    of the block, and ``left`` says so to the next call; it is ``BAD`` if the text is not UTF-8.
    """
    position, end = _copy_tokens(ids, narrow, number, position, slots, spans, blob, text + left, size - left)
    end += left
    read, at = to_units(text, end, units, at, kind)
    if read == BAD:
        return position, BAD, at
    for k in range(end - read):
        store8(text, k, load8(text, read + k))
    return position, end - read, at
