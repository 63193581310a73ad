"""How kernels are compiled and kept.

Numba keeps compiled code beside the source, or in the user's cache when that folder is read-only, or where
``NUMBA_CACHE_DIR`` says. It decides by the date of one file whether the code is current; a kernel here is
made of several files, so the digest of all of them decides instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import caching


@cache
def _digest() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _stamped(locator: type[Any]) -> type[Any]:
    def get_source_stamp(_: Any) -> str:
        return _digest()

    return type(locator.__name__, (locator,), {"get_source_stamp": get_source_stamp})


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = [  # noqa: RUF012 - as Numba declares it
        _stamped(locator) for locator in caching.CompileResultCacheImpl._locator_classes
    ]


class _Cache(caching.FunctionCache):
    _impl_class = _Implementation

    def save_overload(self, signature: Any, data: Any) -> None:
        # a full disk only means compiling again next time
        with suppress(OSError):
            super().save_overload(signature, data)


def kernel(function: Callable[..., Any], *, nogil: bool = True) -> Any:
    """A compiled function that Python calls: cached on disk, and running without the interpreter's lock.

    Args:
        function: Code that Numba understands.
        nogil: Whether it runs without that lock.
    """
    dispatcher: Any = njit(nogil=nogil, boundscheck=False)(function)
    try:
        dispatcher._cache = _Cache(function)
    except RuntimeError:
        # no folder can be written: the kernel is compiled again in each process
        return dispatcher
    return dispatcher


def inner(function: Callable[..., Any]) -> Any:
    """A compiled function that only kernels call.

    Args:
        function: Code that Numba understands.
    """
    return njit(forceinline=True)(function)


def for_types(dispatcher: Any, *arguments: Any) -> Any:
    """A kernel for arguments of known types: to look at them at each call takes longer than a short text.

    Args:
        dispatcher: What :func:`kernel` returned.
        arguments: Numba's types of the arguments.
    """
    return dispatcher.compile(arguments)


def is_cached(module: str, name: str) -> bool:
    """Whether a kernel is on disk, current, for any types.

    Args:
        module: Module of this package.
        name: The kernel's name.
    """
    dispatcher = getattr(import_module(f"bpe_scratch.compiled.{module}"), name)
    try:
        return bool(dispatcher._cache._cache_file._load_index())
    except (AttributeError, OSError):
        return False
