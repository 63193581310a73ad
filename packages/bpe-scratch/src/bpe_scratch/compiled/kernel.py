"""How kernels are compiled and kept.

Numba keeps compiled code beside the source, or in the user's cache when that folder is read-only, or where
``NUMBA_CACHE_DIR`` says. It decides by the date of one file whether the code is current; a kernel here is
made of several files, so the digest of all of them decides instead.
"""

from __future__ import annotations

import hashlib
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit
from numba.core import caching

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@cache
def _digest() -> str:
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _stamped(locator: type[Any]) -> type[Any]:
    return type(locator.__name__, (locator,), {"get_source_stamp": lambda _: _digest()})


class _Implementation(caching.CompileResultCacheImpl):
    _locator_classes = [  # noqa: RUF012 - as Numba declares it
        _stamped(locator) for locator in caching.CompileResultCacheImpl._locator_classes
    ]


class _Cache(caching.FunctionCache):
    _impl_class = _Implementation

    def load_overload(self, signature: Any, context: Any) -> Any:
        with _undisturbed():
            return super().load_overload(signature, context)

    def save_overload(self, signature: Any, data: Any) -> None:
        # a full disk only means compiling again next time
        with suppress(OSError):
            super().save_overload(signature, data)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Signals are handled afterwards: LLVM calls Python while it loads, and crashes where that raises."""
    heard: list[int] = []
    numbers = SIGNALS if threading.current_thread() is threading.main_thread() else ()
    before = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    for number in before:
        signal.signal(number, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in heard:
            before[signal.Signals(number)](number, None)


def kernel(function: Callable[..., Any]) -> Any:
    """A compiled function that Python calls: cached on disk, and running without the interpreter's lock."""
    dispatcher: Any = njit(nogil=True, boundscheck=False)(function)
    # if no folder can be written, the kernel is compiled again in each process
    with suppress(RuntimeError):
        dispatcher._cache = _Cache(function)
    return dispatcher


def inner(function: Callable[..., Any]) -> Any:
    """A compiled function that only kernels call."""
    return njit(forceinline=True)(function)


def is_cached(dispatcher: Any) -> bool:
    """Whether a kernel is on disk, current, for any types."""
    try:
        return bool(dispatcher._cache._cache_file._load_index())
    except (AttributeError, OSError):
        return False
