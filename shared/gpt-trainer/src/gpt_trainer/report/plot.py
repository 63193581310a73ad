"""``loss.png``: the losses of a run by step, with the extra ``plots``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpt_trainer.report.metrics import METRICS_NAME, read_metrics

PLOT_NAME = "loss.png"
SMOOTHED_SHARE, SMOOTHED_LEAST = 0.02, 10
"""The smooth curve averages over about this share of all steps, and at least over so many."""
INK, PALE, ACCENT = "#1f4e79", "#a9c4de", "#d1495b"


def plot_losses(run: Path) -> Path | None:
    """Draw the run's losses; None if matplotlib is not installed or there is nothing to draw."""
    lines = read_metrics(run / METRICS_NAME)
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    val = [(line["step"], line["val_loss"]) for line in lines if "val_loss" in line]
    if not train or find_spec("matplotlib") is None:
        return None
    figure = import_module("matplotlib.figure").Figure(figsize=(7.2, 4.2), dpi=160, layout="constrained")
    axes = figure.subplots()
    _draw(axes, train, val)
    axes.set_title(run.name, loc="left", fontsize=11)
    figure.savefig(run / PLOT_NAME)
    return run / PLOT_NAME


def _draw(axes: Any, train: list[tuple[int, float]], val: list[tuple[int, float]]) -> None:
    steps, losses = zip(*train, strict=True)
    axes.plot(steps, losses, color=PALE, linewidth=0.8, label="training, each step")
    axes.plot(steps, smooth(losses), color=INK, linewidth=1.6, label="training, smoothed")
    if val:
        axes.plot(
            *zip(*val, strict=True),
            color=ACCENT,
            marker="o",
            markersize=3.5,
            linewidth=1.4,
            label="validation",
        )
        axes.annotate(
            f"{val[-1][1]:.3f}",
            val[-1],
            xytext=(4, 8),
            textcoords="offset points",
            color=ACCENT,
            ha="right",
            fontsize=9,
        )
    axes.set(xlabel="optimizer steps", ylabel="loss (nats per token)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.legend(frameon=False, fontsize=9)


def smooth(losses: tuple[float, ...]) -> list[float]:
    """An exponential mean that counts the first values equally.

    >>> smooth((4.0, 2.0, 3.0))
    [4.0, 3.0, 3.0]
    """
    least = 1.0 / max(SMOOTHED_LEAST, SMOOTHED_SHARE * len(losses))
    smoothed: list[float] = []
    mean = 0.0
    for count, loss in enumerate(losses, 1):
        mean += max(1.0 / count, least) * (loss - mean)
        smoothed.append(mean)
    return smoothed
