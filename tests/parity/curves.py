"""Lay the loss curves of several runs over each other: one plot, and how far any two of them part.

    python curves.py OUT.png NAME=RUN NAME=RUN ... [--window 10]

Each RUN is a folder with a ``metrics.jsonl``. The gap of two runs at a step is the difference of their
losses, each a mean over WINDOW steps, relative to the smaller; the largest over all steps is printed.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from gpt_trainer.metrics import read_metrics


def losses_of(run: Path) -> np.ndarray:
    """Training losses in order of steps."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    return np.array([line["loss"] for line in lines])


def smoothed(losses: np.ndarray, window: int) -> np.ndarray:
    """Means over ``window`` consecutive steps."""
    return np.convolve(losses, np.full(window, 1.0 / window), mode="valid")


def largest_gap(a: np.ndarray, b: np.ndarray, window: int) -> float:
    """Largest relative difference of two smoothed curves over the steps that both have."""
    length = min(len(a), len(b))
    a, b = smoothed(a[:length], window), smoothed(b[:length], window)
    return float((np.abs(a - b) / np.minimum(a, b)).max())


def speed_of(run: Path) -> tuple[float, float]:
    """Median tokens per second over the second half of the run, and peak memory in bytes."""
    lines = [line for line in read_metrics(run / "metrics.jsonl") if "tokens_per_second" in line]
    memory = max((line.get("peak_memory_bytes") or 0 for line in lines), default=0)
    return float(np.median([line["tokens_per_second"] for line in lines[len(lines) // 2 :]])), memory


def plot(path: Path, curves: dict[str, np.ndarray]) -> None:
    """Training loss by step, one line per run, and below it each run's distance from the first."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(8, 6), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    first = next(iter(curves.values()))
    styles = itertools.cycle(("-", "--", "-.", ":"))
    for (name, losses), style in zip(curves.items(), styles, strict=False):
        top.plot(np.arange(1, len(losses) + 1), losses, style, label=name, linewidth=1.2)
        length = min(len(losses), len(first))
        difference = 100.0 * (losses[:length] / first[:length] - 1.0)
        bottom.plot(np.arange(1, length + 1), difference, style, linewidth=1.0)
    top.set_ylabel("training loss, nats per token")
    top.legend(frameon=False)
    bottom.set_ylabel(f"% from {next(iter(curves))}")
    bottom.set_xlabel("step")
    figure.savefig(path, dpi=120)


def main() -> None:
    """Plot and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--window", type=int, default=10)
    given = parser.parse_args()
    runs = {name: Path(path) for name, _, path in (pair.partition("=") for pair in given.runs)}
    curves = {name: losses_of(run) for name, run in runs.items()}
    for name, run in runs.items():
        speed, memory = speed_of(run)
        last = smoothed(curves[name], given.window)[-1]
        speed_text = f"{speed:,.0f} tokens/s, {memory / 1e9:.1f} GB"
        print(f"{name}: {len(curves[name])} steps, loss {last:.4f}, {speed_text}")
    for one, other in itertools.combinations(curves, 2):
        gap = largest_gap(curves[one], curves[other], given.window)
        print(f"{one} and {other}: at most {100.0 * gap:.3f} % apart, smoothed over {given.window} steps")
    plot(given.out, curves)


if __name__ == "__main__":
    main()
