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


@intrinsic
def lowest_bit(typing: Any, value: Any) -> Any:
    """Position of the lowest set bit; 64 if there is none."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], cgutils.false_bit)

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
