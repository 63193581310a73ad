"""Check every kernel on this GPU against float64, then time it beside torch's own op.

The check comes first, and an op that fails it fails the run, whatever the times. Outputs are poisoned with
NaN; errors are relative Frobenius norms against the reference in float64. The rule: float32 within 1e-5;
bfloat16 within twice the error of the same reference run in bfloat16 by torch. Times are medians over
replays of a CUDA graph (CUDA events where the capture fails). Results are written to a JSON file after
every op.

    python packages/gpt-triton/bench/bench_kernels.py [--rows 64 32] [--only attention] [--no-check]
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch
from kernel_checks import check_all
from kernel_report import Report
from time_attention import time_attention
from time_memory_bound import time_adamw, time_embedding, time_rowwise
from time_products import time_head, time_linear

CONTEXT = 1024


def time_all(report: Report, rows: int, only: str) -> None:
    """Every op at GPT-2 124M, bfloat16, beside torch's.

    Args:
        report: Takes the times.
        rows: Rows of ``CONTEXT`` tokens.
        only: Part of the names of the ops that are timed.
    """
    tokens = rows * CONTEXT
    timings = {
        "linear matmul": lambda: time_linear(report, tokens),
        "attention": lambda: time_attention(report, rows, CONTEXT),
        "layer_norm gelu": lambda: time_rowwise(report, tokens),
        "cross_entropy head": lambda: time_head(report, tokens),
        "embedding": lambda: time_embedding(report, rows, CONTEXT),
        "adamw": lambda: time_adamw(report),
    }
    for names, run in timings.items():
        if only in names:
            run()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Check and time every kernel on this GPU.")
    parser.add_argument("--out", type=Path, default=Path("kernels.json"))
    parser.add_argument("--rows", type=int, nargs="*", default=[64])
    parser.add_argument("--only", default="", help="part of an op's name")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Check, then time; 1 if a check failed."""
    args = _arguments()
    warnings.filterwarnings("ignore", message=".*deterministic.*")
    torch.backends.cuda.matmul.allow_tf32 = False
    report = Report(args.out)
    for sizes in () if args.no_check else ("small", "large"):
        check_all(report, args.only, sizes)
    for rows in () if args.no_time else args.rows:
        report.begin_rows(rows)
        time_all(report, rows, args.only)
        report.print_median()
    print("all checks passed" if report.fine else "SOME CHECKS FAILED")
    return 0 if report.fine else 1


if __name__ == "__main__":
    sys.exit(main())
