"""Plain loads and stores at an address, bitmaps of 64 bytes, and their lowest set bits.

Kernels work on addresses: Numba counts references of arrays at every call, and checks every index for a
negative sign, which would cost more than the work itself.  An address is an int64; indexes count elements.
Nothing here checks a bound: who calls a kernel makes the room.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

from llvmlite import ir
from numba import extending, types
from numba.core import cgutils

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_N, _U = types.int64, types.uint64
_WINDOW = 64


def _intrinsic(doc: str, signature: Any, build: Callable[..., Any]) -> Any:
    """A function that kernels call, as the instructions that ``build(builder, *arguments)`` makes."""

    def generate(context: Any, builder: Any, _: Any, args: Any) -> Any:
        made = build(builder, *args)
        return context.get_dummy_value() if signature.return_type == types.void else made

    def typed(*_: Any) -> Any:
        return signature, generate

    # Numba reads the names of parameters, and takes no others
    names = ["typing", "a", "b", "c", "d", "e"][: 1 + len(signature.args)]
    typed.__dict__["__signature__"] = Signature([Parameter(n, Parameter.POSITIONAL_ONLY) for n in names])
    typed.__doc__ = doc
    made: Any = extending.intrinsic(typed)
    return made


def _at(builder: Any, base: Any, index: Any, scale: int, kind: Any) -> Any:
    return builder.inttoptr(builder.add(base, builder.mul(index, _I64(scale))), kind.as_pointer())


def _loader(doc: str, kind: Any, scale: int, result: Any = _N) -> Any:
    def build(builder: Any, base: Any, index: Any) -> Any:
        value = builder.load(_at(builder, base, index, scale, kind), align=scale)
        return value if kind is _I64 else (builder.sext if kind is _I32 else builder.zext)(value, _I64)

    return _intrinsic(doc, result(_N, _N), build)


def _storer(doc: str, kind: Any, scale: int, stored: Any = _N) -> Any:
    def build(builder: Any, base: Any, index: Any, value: Any) -> None:
        number = value if kind is _I64 else builder.trunc(value, kind)
        builder.store(number, _at(builder, base, index, scale, kind), align=scale)

    return _intrinsic(doc, types.void(_N, _N, stored), build)


load8 = _loader("Byte ``i`` as int64.", _I8, 1)
load32 = _loader("int32 number ``i`` as int64.", _I32, 4)
load64 = _loader("uint64 number ``i``.", _I64, 8, _U)
load_int = _loader("int64 number ``i``.", _I64, 8)
load_bytes = _loader("The eight bytes from byte ``i`` on, the first one lowest.", _I64, 1, _U)
store8 = _storer("Write byte ``i``.", _I8, 1)
store16 = _storer("Write uint16 number ``i``.", _I16, 2)
store32 = _storer("Write int32 number ``i``.", _I32, 4)
store64 = _storer("Write uint64 number ``i``.", _I64, 8, _U)
store_int = _storer("Write int64 number ``i``.", _I64, 8)

lowest_bit = _intrinsic(
    "Position of the lowest set bit; 64 if there is none.", _N(_U), lambda b, x: b.cttz(x, cgutils.false_bit)
)
set_bits = _intrinsic("Number of set bits.", _N(_U), lambda b, x: b.ctpop(x))


def _address(typing: Any, array: Any) -> Any:  # noqa: ARG001 - Numba fixes the parameters
    """Address of the first element of an array."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, _I64)

    return types.int64(array), generate


address: Any = extending.intrinsic(_address)


def _splat(builder: Any, number: Any, kind: Any, lanes: int) -> Any:
    undefined = ir.Constant(ir.VectorType(kind, lanes), ir.Undefined)
    one = builder.insert_element(undefined, number, _I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes))


def _bytes_within(builder: Any, base: Any, index: Any, *numbers: Any) -> Any:
    place = _at(builder, base, index, 1, ir.VectorType(_I8, _WINDOW))
    fold, low, count = (_splat(builder, builder.trunc(n, _I8), _I8, _WINDOW) for n in numbers)
    folded = builder.or_(builder.load(place, align=1), fold)
    found = builder.icmp_unsigned("<", builder.sub(folded, low), count)
    return builder.bitcast(found, ir.IntType(_WINDOW))


# one vector of 64 bytes; the compiler cuts it to what the machine has
bytes_within = _intrinsic(
    "Bitmap of the 64 bytes from byte ``index`` on within ``low + [0, count)`` once ``fold`` is or-ed in.",
    _U(_N, _N, _N, _N, _N),
    _bytes_within,
)


def _equal8(builder: Any, base: Any, index: Any, value: Any) -> Any:
    numbers = builder.load(_at(builder, base, index, 8, ir.VectorType(_I64, 8)), align=8)
    equal = builder.icmp_unsigned("==", numbers, _splat(builder, value, _I64, 8))
    return builder.zext(builder.bitcast(equal, _I8), _I64)


equal8 = _intrinsic(
    "Bitmap of the eight uint64 from number ``i`` on that are a value.", _U(_N, _N, _U), _equal8
)


def _four_storer(kind: Any) -> Any:
    def build(builder: Any, source: Any, index: Any, out: Any, at: Any) -> None:
        lanes, narrow = ir.VectorType(_I32, 4), ir.VectorType(kind, 4)
        numbers = builder.load(_at(builder, source, index, 8, lanes), align=8)
        low = builder.and_(numbers, ir.Constant(lanes, [(1 << 28) - 1] * 4))
        size = kind.width // 8
        stored = low if kind is _I32 else builder.trunc(low, narrow)
        builder.store(stored, _at(builder, out, at, size, narrow), align=size)

    doc = f"Write the lower 28 bits of the four uint32 from uint64 number ``index`` on as uint{kind.width}."
    return _intrinsic(doc, types.void(_N, _N, _N, _N), build)


store_four16, store_four32 = _four_storer(_I16), _four_storer(_I32)


def _prefetch(builder: Any, base: Any, index: Any) -> None:
    pointer = _at(builder, base, index, 8, _I8)
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
    declared = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    builder.call(declared, [pointer, _I32(0), _I32(3), _I32(1)])


prefetch = _intrinsic("Ask for the cache line of uint64 number ``i``.", types.void(_N, _N), _prefetch)
