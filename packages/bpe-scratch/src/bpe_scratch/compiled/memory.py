# ruff: noqa: ARG001 - Numba fixes the parameters of an intrinsic
"""Plain loads and stores at an address, bitmaps of 64 bytes, and their lowest set bits.

Kernels take NumPy arrays and hand their addresses on: Numba counts references of arrays at every call, and
checks every index for a negative sign, which would cost more than the work itself.  An address is an int64;
indexes count elements.  Nothing here checks a bound: the caller of a kernel makes the room.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

from bpe_scratch.compiled.kernel import inner

# a decorator whose result has another signature than the function it is given
intrinsic: Any = extending.intrinsic

_WINDOW = 64
_A_TO_TOP = np.uint64(0x1F1F1F1F1F1F1F1F)  # 0x80 - "a" in each byte
_Z_TO_TOP = np.uint64(0x0505050505050505)  # 0x80 - "z" - 1 in each byte
_CASE = np.uint64(0x2020202020202020)
_LOW7 = np.uint64(0x7F7F7F7F7F7F7F7F)
_TOP = np.uint64(0x8080808080808080)


@intrinsic
def address(typing: Any, array: Any) -> Any:
    """Address of the first element of an array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), generate


def _pointer(builder: Any, base: Any, index: Any, bits: int, scale: int) -> Any:
    place = builder.add(base, builder.mul(index, ir.Constant(ir.IntType(64), scale)))
    return builder.inttoptr(place, ir.IntType(bits).as_pointer())


def _loader(name: str, doc: str, bits: int, scale: int, result: Any) -> Any:
    def load(typing: Any, base: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(_pointer(builder, args[0], args[1], bits, scale), align=min(scale, 8))
            if bits == 64:
                return value
            return (builder.sext if bits == 32 else builder.zext)(value, ir.IntType(64))

        return result(types.int64, types.int64), generate

    return _named(load, name, doc)


def _storer(name: str, doc: str, bits: int, scale: int, stored: Any) -> Any:
    def store(typing: Any, base: Any, index: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            number = args[2] if bits == 64 else builder.trunc(args[2], ir.IntType(bits))
            builder.store(number, _pointer(builder, args[0], args[1], bits, scale), align=min(scale, 8))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, stored), generate

    return _named(store, name, doc)


def _named(function: Callable[..., Any], name: str, doc: str) -> Any:
    function.__name__ = function.__qualname__ = name
    function.__doc__ = doc
    return intrinsic(function)


load8 = _loader("load8", "Byte ``i`` as int64.", 8, 1, types.int64)
load_u16 = _loader("load_u16", "uint16 number ``i`` as int64.", 16, 2, types.int64)
load32 = _loader("load32", "int32 number ``i`` as int64.", 32, 4, types.int64)
load64 = _loader("load64", "uint64 number ``i``.", 64, 8, types.uint64)
load_bytes = _loader(
    "load_bytes", "The eight bytes from byte ``i`` on, the first one lowest.", 64, 1, types.uint64
)
store8 = _storer("store8", "Write byte ``i``.", 8, 1, types.int64)
store16 = _storer("store16", "Write uint16 number ``i``.", 16, 2, types.int64)
store32 = _storer("store32", "Write int32 number ``i``.", 32, 4, types.int64)
store64 = _storer("store64", "Write uint64 number ``i``.", 64, 8, types.uint64)
store_bytes = _storer("store_bytes", "Write eight bytes from byte ``i`` on.", 64, 1, types.uint64)


def _narrower(name: str, bits: int) -> Any:
    def narrow(typing: Any, characters: Any, index: Any, out: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wide, narrowed = (ir.VectorType(ir.IntType(width), _WINDOW) for width in (bits, 8))
            place = builder.add(args[0], builder.mul(args[1], ir.IntType(64)(bits // 8)))
            found = builder.load(builder.inttoptr(place, wide.as_pointer()), align=bits // 8)
            target = builder.inttoptr(builder.add(args[2], args[3]), narrowed.as_pointer())
            builder.store(found if bits == 8 else builder.trunc(found, narrowed), target, align=1)
            high = builder.icmp_unsigned(">", found, ir.Constant(wide, [0x7F] * _WINDOW))
            return builder.bitcast(high, ir.IntType(_WINDOW))

        return types.uint64(*(types.int64,) * 4), generate

    doc = f"Write 64 characters of {bits} bits as bytes; returns the bitmap of those that are not ASCII."
    return _named(narrow, name, doc)


narrow8, narrow16, narrow32 = _narrower("narrow8", 8), _narrower("narrow16", 16), _narrower("narrow32", 32)


@intrinsic
def pointer_address(typing: Any, pointer: Any) -> Any:
    """A pointer as an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ptrtoint(args[0], ir.IntType(64))

    return types.int64(pointer), generate


@intrinsic
def lowest_bit(typing: Any, value: Any) -> Any:
    """Position of the lowest set bit; 64 if there is none."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], cgutils.false_bit)

    return types.int64(types.uint64), generate


@intrinsic
def highest_bit(typing: Any, value: Any) -> Any:
    """Position of the highest set bit; -1 if there is none."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.sub(ir.IntType(64)(63), builder.ctlz(args[0], cgutils.false_bit))

    return types.int64(types.uint64), generate


@intrinsic
def set_bits(typing: Any, value: Any) -> Any:
    """Number of set bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), generate


@intrinsic
def bytes_within(typing: Any, base: Any, index: Any, fold: Any, low: Any, count: Any) -> Any:
    """Bitmap of the 64 bytes from byte ``index`` on within ``low + [0, count)`` once ``fold`` is or-ed in.

    Written as one vector of 64 bytes; the compiler cuts it to what the machine has.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), _WINDOW)

        def splat(number: Any) -> Any:
            undefined = ir.Constant(vector, ir.Undefined)
            one = builder.insert_element(undefined, builder.trunc(number, ir.IntType(8)), ir.IntType(32)(0))
            lanes = ir.Constant(ir.VectorType(ir.IntType(32), _WINDOW), [0] * _WINDOW)
            return builder.shuffle_vector(one, undefined, lanes)

        place = builder.inttoptr(builder.add(args[0], args[1]), vector.as_pointer())
        folded = builder.or_(builder.load(place, align=1), splat(args[2]))
        found = builder.icmp_unsigned("<", builder.sub(folded, splat(args[3])), splat(args[4]))
        return builder.bitcast(found, ir.IntType(_WINDOW))

    numbers = (types.int64,) * 5
    return types.uint64(*numbers), generate


@intrinsic
def least_of_16(typing: Any, base: Any) -> Any:
    """``number << 32 | index`` of the least of 16 uint32 numbers, the first of equals."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes, i32, i64 = ir.VectorType(ir.IntType(32), 16), ir.IntType(32), ir.IntType(64)
        numbers = builder.load(builder.inttoptr(args[0], lanes.as_pointer()), align=4)
        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(i32, [lanes]), "llvm.vector.reduce.umin.v16i32"
        )
        least = builder.call(reduce, [numbers])
        undefined = ir.Constant(lanes, ir.Undefined)
        one = builder.insert_element(undefined, least, i32(0))
        every = builder.shuffle_vector(one, undefined, ir.Constant(lanes, [0] * 16))
        equal = builder.bitcast(builder.icmp_unsigned("==", numbers, every), ir.IntType(16))
        first = builder.zext(builder.cttz(equal, cgutils.true_bit), i64)
        return builder.or_(builder.shl(builder.zext(least, i64), i64(32)), first)

    return types.uint64(types.int64), generate


def _four_storer(name: str, bits: int) -> Any:
    def store_four(typing: Any, source: Any, index: Any, out: Any, at: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            lanes, narrow = (ir.VectorType(ir.IntType(width), 4) for width in (32, bits))
            place = builder.inttoptr(
                builder.add(args[0], builder.mul(args[1], ir.IntType(64)(8))), lanes.as_pointer()
            )
            low = builder.and_(builder.load(place, align=8), ir.Constant(lanes, [(1 << 28) - 1] * 4))
            target = builder.add(args[2], builder.mul(args[3], ir.IntType(64)(bits // 8)))
            builder.store(
                low if bits == 32 else builder.trunc(low, narrow),
                builder.inttoptr(target, narrow.as_pointer()),
                align=bits // 8,
            )
            return context.get_dummy_value()

        return types.void(*(types.int64,) * 4), generate

    doc = f"Write the lower 28 bits of the four uint32 from uint64 number ``index`` on as uint{bits}."
    return _named(store_four, name, doc)


store_four16, store_four32 = _four_storer("store_four16", 16), _four_storer("store_four32", 32)


@intrinsic
def prefetch(typing: Any, base: Any, index: Any) -> Any:
    """Ask for the cache line of uint64 number ``i``."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], args[1], 8, 8)
        i32 = ir.IntType(32)
        declare = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer.type], ir.FunctionType(ir.VoidType(), [pointer.type, i32, i32, i32])
        )
        builder.call(declare, [pointer, i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@inner
def not_letters(word: np.uint64) -> np.uint64:
    """The top bit of each byte that is not an ASCII letter.

    In lower case a letter plus ``0x80 - "a"`` reaches the top bit and plus ``0x80 - "z" - 1`` does not. The
    sums stay in their bytes since the top bits are cleared before.
    """
    lower = (word | _CASE) & _LOW7
    letter = (lower + _A_TO_TOP) & ~(lower + _Z_TO_TOP) & ~word
    return ~letter & _TOP
