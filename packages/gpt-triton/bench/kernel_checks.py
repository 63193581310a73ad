"""Every kernel against the reference in float64, and against itself run again."""

from __future__ import annotations

import math
import time

import torch
from gpt_triton import kernels, reference
from gpt_triton.compiling import launch_compiled
from kernel_cases import Cases, Run
from kernel_report import Report
from torch import Tensor


def check_all(report: Report, only: str, sizes: str) -> None:
    """Every op in both dtypes; prints one line each.

    Args:
        report: Takes the verdicts.
        only: Part of the names of the ops that are checked.
        sizes: ``small`` or ``large``, a method of ``Cases``.
    """
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    for dtype in (torch.float32, torch.bfloat16):
        for name, run in getattr(Cases(dtype), sizes)():
            if only in name:
                start = time.perf_counter()
                passed, note = _verdict(run, dtype)
                report.add_check(name, dtype, passed, note, time.perf_counter() - start)
    torch.use_deterministic_algorithms(False)


def _verdict(run: Run, dtype: torch.dtype) -> tuple[bool, str]:
    """Whether the op passed, and its errors beside their limits, or what it raised."""
    try:
        launch_compiled(lambda: run(kernels, dtype))
        want, got, again = run(reference, torch.float64), run(kernels, dtype), run(kernels, dtype)
        errors, limits = _errors(got, want), _limits(run, dtype, want)
    except Exception as error:  # noqa: BLE001  # one broken op must not hide the others
        return False, f"{type(error).__name__}: {str(error)[:400]}"
    same = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
    pairs = list(zip(errors, limits, strict=True))
    note = " ".join(f"{error:.1e}/{limit:.0e}" for error, limit in pairs)
    passed = same and all(error <= limit for error, limit in pairs)
    return passed, note + ("" if same else "  DIFFERS FROM RUN TO RUN")


def _limits(run: Run, dtype: torch.dtype, want: list[Tensor]) -> list[float]:
    """The largest error allowed of each output."""
    if dtype != torch.bfloat16:
        return [1e-5] * len(want)
    return [max(1e-5, 2 * error) for error in _errors(run(reference, dtype), want)]


def _errors(got: list[Tensor], want: list[Tensor]) -> list[float]:
    return [_relative(a, b) for a, b in zip(got, want, strict=True)]


def _relative(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius error, in float64; infinite if anything is not finite."""
    got, want = got.double(), want.double()
    error = float((got - want).norm() / want.norm().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf
