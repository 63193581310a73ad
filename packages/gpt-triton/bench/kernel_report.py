"""Verdicts and times of the kernels: printed as they come, and kept in a file."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton


class Report:
    """Checks and times, written to a JSON file after every op.

    Attributes:
        fine: Whether all checks so far have passed.
    """

    def __init__(self, path: Path) -> None:
        self.fine = True
        self._path = path
        self._checks: list[dict[str, Any]] = []
        self._times: list[dict[str, Any]] = []
        self._device = torch.cuda.get_device_name()
        self._versions = {"torch": torch.__version__, "triton": triton.__version__}
        print(self._device, self._versions)

    def add_check(self, op: str, dtype: torch.dtype, passed: bool, note: str, seconds: float) -> None:
        """Print and keep one verdict."""
        self.fine &= passed
        kind = str(dtype).removeprefix("torch.")
        print(f"{'ok  ' if passed else 'FAIL'} {kind:8s} {op:42s} {seconds:5.1f} s  {note}", flush=True)
        self._checks.append({"op": op, "dtype": kind, "passed": passed, "errors": note})
        self._save()

    def begin_rows(self, rows: int) -> None:
        """Head the times of one batch size."""
        print(f"\nB={rows}, T=1024, bfloat16")
        self._add_time({"op": f"B={rows}"})

    def time_pair(
        self, op: str, ours: Callable[[], Any], theirs: Callable[[], Any] | None = None, note: str = ""
    ) -> float:
        """Time an op beside torch's and print one row; a ratio above 1: ours is faster.

        Args:
            op: Name of the row.
            ours: Calls the kernel.
            theirs: Calls torch's op; ``None`` where torch has none.
            note: What the comparison leaves out.

        Returns:
            Milliseconds of ours; not a number if it failed.
        """
        try:
            ms = milliseconds(ours)
        except Exception as error:  # noqa: BLE001  # one broken op must not hide the others
            print(f"{op:46s} FAILED: {type(error).__name__}: {str(error)[:300]}", flush=True)
            self._add_time({"op": op, "error": str(error)[:300]})
            return math.nan
        torch_ms = math.nan if theirs is None else milliseconds(theirs)
        print(
            f"{op:46s} {ms:8.3f} ms  torch {torch_ms:8.3f} ms  ratio {torch_ms / ms:5.2f}  {note}", flush=True
        )
        self._add_time({"op": op, "ms": ms, "torch_ms": None if theirs is None else torch_ms, "note": note})
        return ms

    def print_median(self) -> None:
        """The middle of all ratios so far."""
        ratios = [t["torch_ms"] / t["ms"] for t in self._times if t.get("torch_ms")]
        print(f"median ratio {statistics.median(ratios):.2f}" if ratios else "")

    def _add_time(self, row: dict[str, Any]) -> None:
        self._times.append(row)
        self._save()

    def _save(self) -> None:
        parts = {
            "checks": self._checks,
            "times": self._times,
            "device": self._device,
            "versions": self._versions,
        }
        self._path.write_text(json.dumps(parts, indent=1))


def milliseconds(run: Callable[[], Any]) -> float:
    """Median time of one call: by graph replays, so that launches from Python do not count."""
    run()
    torch.cuda.synchronize()
    try:
        return float(triton.testing.do_bench_cudagraph(run, rep=60, return_mode="median"))
    except Exception as error:  # noqa: BLE001  # whatever cannot be captured can still be timed by events
        print(f"  (not captured: {str(error)[:120]})")
        torch.cuda.synchronize()
        return float(triton.testing.do_bench(run, rep=60, return_mode="median"))
