"""Lay the loss curves of runs that exist over each other: plots, and how far any two of them part.

    python curves.py OUT NAME=RUN NAME=RUN ...

Each RUN is a folder with a ``metrics.jsonl``, however it came about: one that went on in another backend,
one from another machine. ``gpt-compare`` trains and compares in one go; this is for what it cannot train.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from gpt_compare.figures import WINDOW, Row, largest_gap, measure, with_gaps
from gpt_compare.plots import draw_all
from gpt_trainer.report.metrics import METRICS_NAME, read_metrics


def main() -> None:
    """Plot and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    given = parser.parse_args()
    runs = {name: Path(path) for name, _, path in (pair.partition("=") for pair in given.runs)}
    found = {name: measure(read_metrics(run / METRICS_NAME)) for name, run in runs.items()}
    for name, figures in found.items():
        speed = f"{figures.tokens_per_second:,.0f} tokens/s, {figures.peak_memory_bytes / 1e9:.1f} GB"
        print(f"{name}: {figures.steps} steps, loss {figures.loss:.4f}, {speed}")
    for one, other in itertools.combinations(found, 2):
        gap = largest_gap(found[one].losses, found[other].losses)
        print(f"{one} and {other}: at most {100.0 * gap:.2g} % apart, smoothed over {WINDOW} steps")
    given.out.mkdir(parents=True, exist_ok=True)
    rows = with_gaps([Row(name, figures=figures) for name, figures in found.items()])
    print(*draw_all(given.out, rows, ", ".join(found)), sep="\n")


if __name__ == "__main__":
    main()
