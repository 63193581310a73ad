"""A bounds check for kernels in Triton's interpreter: every unmasked address lies inside a live tensor.

Canaries see writes near a tensor; this sees any access, reads too. It wraps the two functions through
which the interpreter touches memory and compares addresses with the storages of the tensors that were
passed to a kernel (and of those allocated by a launcher, which are passed as well).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter


class OutOfBoundsError(AssertionError):
    """A kernel touched memory that no argument of its launch covers."""


def _ranges(values: Any) -> list[tuple[int, int]]:
    """Address ranges of the tensors and descriptors among a launch's arguments."""
    found = []
    for value in values:
        tensor = getattr(value, "base", value) if not isinstance(value, torch.Tensor) else value
        if isinstance(tensor, torch.Tensor):
            begin = tensor.data_ptr()
            span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            found.append((begin, begin + (span if tensor.numel() else 0) * tensor.element_size()))
    return found


@contextmanager
def bounds_checked() -> Iterator[list[int]]:
    """Raise ``OutOfBoundsError`` on a stray access; yields a list that counts the accesses seen."""
    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store
    call = interpreter.GridExecutor.__call__
    current: list[tuple[int, int]] = []
    seen = [0]

    def verify(pointers: Any, mask: Any, what: str) -> None:
        active = np.asarray(pointers.data)[np.broadcast_to(mask.data, pointers.data.shape)].astype(np.int64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        inside = np.zeros(active.shape, bool)
        for begin, end in current:
            inside |= (active >= begin) & (active + size <= end)
        seen[0] += active.size
        if not inside.all():
            raise OutOfBoundsError(f"{what} of {(~inside).sum()} addresses outside every argument")

    def checked_load(self: Any, ptrs: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        verify(ptrs, mask, "load")
        return load(self, ptrs, mask, *args, **kwargs)

    def checked_store(self: Any, ptrs: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
        verify(ptrs, mask, "store")
        return store(self, ptrs, value, mask, *args, **kwargs)

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        current[:] = _ranges([*args, *kwargs.values()])
        return call(self, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store = checked_load, checked_store
    interpreter.GridExecutor.__call__ = launch
    try:
        yield seen
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        interpreter.GridExecutor.__call__ = call
