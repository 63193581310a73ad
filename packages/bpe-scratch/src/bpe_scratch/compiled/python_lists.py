# ruff: noqa: ARG001 - Numba fixes the parameters of an intrinsic
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
"""Reading a Python list of integers inside a kernel, by functions of Python's public C interface.

One pass of them takes 5 ns a number; ``array("I", numbers)`` takes 9 and ``np.fromiter`` 19.  A kernel that
calls them must keep the interpreter's lock.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from bpe_scratch.compiled.memory import intrinsic

_OBJECT, _NUMBER = ir.IntType(8).as_pointer(), ir.IntType(64)


def _call(context: Any, builder: Any, name: str, result: Any, given: tuple[Any, ...], args: Any) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, given), name)
    return builder.call(function, args)


@intrinsic
def list_number(typing: Any, numbers: Any, index: Any) -> Any:
    """Integer ``index`` of the list at an address.

    -1, with an error set, if it is no integer (this runs no code of the object's), has no such form, or if
    the list has become shorter.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        place = builder.inttoptr(args[0], _OBJECT)
        # borrowed: nothing else runs while the lock is held
        item = _call(context, builder, "PyList_GetItem", _OBJECT, (_OBJECT, _NUMBER), (place, args[1]))
        return _call(context, builder, "PyLong_AsSsize_t", _NUMBER, (_OBJECT,), (item,))

    return types.int64(types.int64, types.int64), generate


@intrinsic
def forget_error(typing: Any) -> Any:
    """Clear the error that a call has set, if any."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _call(context, builder, "PyErr_Clear", ir.VoidType(), (), ())
        return context.get_dummy_value()

    return types.void(), generate
