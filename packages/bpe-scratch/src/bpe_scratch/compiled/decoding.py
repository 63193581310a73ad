# ruff: noqa: ARG001 - Numba fixes the parameters of an intrinsic
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""From ids to bytes or characters: add up the lengths, then copy sixteen bytes at a time.

Tables of one vocabulary, by id:

    sums   [ids] uint64: bytes of the token, characters that begin in it << 32, their widths << 61; or UNKNOWN
    slots  [ids, 16] uint8: a token of up to 15 bytes, its length last; or LONG there.  | OTHER if not ASCII
    spans  [ids, 2] int64: start and length in ``blob``, all tokens one after another

Ids are given as the bytes of an array of uint16 (``narrow``) or uint32, and ``number`` of them; tables by
their addresses.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types

from bpe_scratch.compiled.kernel import inner, kernel
from bpe_scratch.compiled.memory import (
    address,
    intrinsic,
    load8,
    load32,
    load64,
    pointer_address,
    store8,
    store16,
    store32,
)
from bpe_scratch.compiled.python_lists import forget_error, list_number
from bpe_scratch.compiled.text_units import BAD, SLOT, to_units, widen_slot

UNKNOWN = np.uint64(0xFFFFFFFFFFFFFFFF)
LONG = 16
OTHER = 0x80
_LENGTH = 0x1F
_RUN = 1024  # ids looked at ahead; any number would do
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
def measure(numbers, narrow, number, sums, size):
    """``(bytes, characters, widths, -1)``, or the position of the first id that is unknown instead of -1."""
    ids = address(numbers)
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


@partial(kernel, nogil=False)
def measure_list(numbers, written, narrow, number, sums, size):
    """The same of a Python list at an address, whose ids are written."""
    ids = address(written)
    length, characters, widths = np.uint64(0), np.uint64(0), np.uint64(0)
    for position in range(number):
        index = list_number(numbers, position)
        if index < 0 or index >= size or load64(sums, index) == UNKNOWN:
            forget_error()
            return 0, 0, 0, position
        entry = load64(sums, index)
        length += entry & _LOW32
        characters += entry >> _32 & _LOW29
        widths |= entry
        if narrow:
            store16(ids, position, index)
        else:
            store32(ids, position, index)
    return np.int64(length), np.int64(characters), np.int64(widths >> _61), -1


@inner
def _copy_tokens(ids, narrow, number, position, slots, spans, blob, out, size):
    """Write tokens from ``position`` on, as many as fit ``size`` bytes; returns ``(position, bytes)``."""
    end = 0
    while position < number:
        index = _load_id(ids, position, narrow)
        length = load8(slots, index * SLOT + SLOT - 1) & _LENGTH
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
def copy_tokens(numbers, narrow, number, slots, spans, blob, out, size):
    """Write the bytes of known ids to an address, ``size`` in all and not one more."""
    _copy_tokens(address(numbers), narrow, number, 0, slots, spans, blob, out, size)


@inner
def _is_short_ascii(ids, narrow, position, slots):
    return load8(slots, _load_id(ids, position, narrow) * SLOT + SLOT - 1) < LONG


@inner
def _run_end(ids, narrow, number, position, slots):
    """End of the ids from ``position`` on that are, but for the first, no short ASCII tokens."""
    last = min(number, position + _RUN)
    position += 1
    while position < last and not _is_short_ascii(ids, narrow, position, slots):
        position += 1
    return min(position, number)


@inner
def _widen_tokens(ids, narrow, number, position, slots, units, at, stop, kind):
    """Write short ASCII tokens while there are any and a slot has room; returns ``(position, end)``."""
    while position < number and at + SLOT <= stop:
        slot = slots + _load_id(ids, position, narrow) * SLOT
        length = load8(slot, SLOT - 1)
        if length >= LONG:
            break
        widen_slot(slot, units, at, kind)
        at += length
        position += 1
    return position, at


@kernel
def write_text(numbers, narrow, number, slots, spans, blob, size, text, kind):
    """Write the characters of known ids into a new string of just so many; returns whether they are UTF-8.

    Short ASCII tokens go straight there. The others can share characters: their bytes are gathered first, up
    to ``size`` at a time, which must be more than the longest token by 3.
    """
    room = np.empty(size, dtype=np.uint8)
    ids, block, units = address(numbers), address(room), pointer_address(text._data)
    position, at, left = 0, 0, 0
    while position < number:
        if left == 0:
            position, at = _widen_tokens(ids, narrow, number, position, slots, units, at, text._length, kind)
        stop = _run_end(ids, narrow, number, position, slots)
        position, end = _copy_tokens(
            ids, narrow, stop, position, slots, spans, blob, block + left, size - left
        )
        read, at = to_units(block, left + end, units, at, kind)
        if read == BAD:
            return False
        # a character that is cut off goes to the start of the block
        left += end - read
        for k in range(left):
            store8(block, k, load8(block, read + k))
    return left == 0
