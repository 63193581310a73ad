"""Kernels compiled side by side before they are first launched.

Triton compiles a kernel when it is launched for the first time, one after the other: half a minute for a
step. Here a sequence of launches is run once with the kernels that are not compiled yet left out; those are
then compiled and loaded by threads, which are most of the time in Triton's C++ or wait for the assembler.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")

# the compiler takes a few hundred MB for each
MOST_THREADS = 16


def launch_compiled(launch: Callable[[], T]) -> T:
    """Call ``launch``, and once more if kernels had to be compiled for it; the result of the last call.

    Raises:
        Exception: What the compiler raised first.
    """
    result, missing = _left_out(launch)
    if not missing:
        return result
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def compile_here(compile_one: Callable[[], Any]) -> None:
        if device is None:
            compile_one()
            return
        # a thread has a current device of its own
        with torch.cuda.device(device):
            # asked for, it is loaded, and its launcher built: a C compiler's work of a quarter of a second
            _ = compile_one().run

    with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1, MOST_THREADS)) as pool:
        list(pool.map(compile_here, missing))
    return launch()


def hash_compiler() -> threading.Thread | None:
    """Start to hash Triton's own files, half a gigabyte, which names all that it compiles and keeps.

    Triton does so once in a process, when it is first asked for a kernel: then sixteen threads at a time.

    Returns:
        The thread; ``None`` if Triton is not there, or hashes in another place.
    """
    try:
        from triton.runtime.cache import triton_key
    except ImportError:
        return None
    thread = threading.Thread(target=triton_key, daemon=True)
    thread.start()
    return thread


def _left_out(launch: Callable[[], T]) -> tuple[T, list[Callable[[], Any]]]:
    """Call ``launch`` without the kernels that are not compiled yet; how each of them is compiled."""
    missing: dict[str, Callable[[], Any]] = {}
    # without Triton there is nothing to leave out
    if importlib.util.find_spec("triton") is None:
        return launch(), []
    from triton import knobs

    def leave_out(*, fn: Any, compile: dict[str, Any], **_: Any) -> bool:  # noqa: A002  # Triton's name
        data = compile["specialization_data"]
        missing.setdefault(data, lambda: fn.jit_function.preload(data))
        return True

    before = knobs.runtime.jit_cache_hook
    knobs.runtime.jit_cache_hook = leave_out
    try:
        result = launch()
    finally:
        knobs.runtime.jit_cache_hook = before
    return result, list(missing.values())
