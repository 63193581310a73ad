"""The global settings of torch that decide the model's numbers, and whether it can compile.

Everything here is set when a backend is created, from its ``Runtime``; nothing is read from the
environment, and nothing happens on import.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from gpt_trainer.backend import Runtime


def set_numerics(runtime: Runtime) -> None:
    """Make float32 mean float32, sums of bfloat16 products float32, and, if asked, every run the same."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    if runtime.deterministic:
        # cuBLAS keeps its order of summation only with a workspace of fixed size
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(runtime.deterministic)
    # deterministic mode also fills fresh tensors with NaN: a check, which would cost a pass over each
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def any_order() -> Iterator[None]:
    """Within, what is written by an index is not sorted first: for indices that differ, order is nothing."""
    sorts = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(sorts)


def can_compile(device: torch.device) -> bool:
    """Whether ``torch.compile`` has what it needs: a C++ compiler on a CPU; Triton and a C one on a GPU."""
    if device.type == "cuda":
        # Triton compiles the code that launches its kernels
        found = any(shutil.which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang"))
        return found and importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))


def compiler_options(deterministic: bool) -> dict[str, Any]:
    """Options for ``torch.compile``."""
    return {"deterministic": True} if deterministic else {}
