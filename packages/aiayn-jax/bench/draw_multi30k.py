"""Draw the learning curves that multi30k.py measured: ``python draw_multi30k.py PICTURE JSON...``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from gpt_trainer.report.plot import smooth
from matplotlib.figure import Figure

COLOURS = ("#1f4e79", "#d1495b", "#66a182", "#edae49")


def draw(picture: Path, files: list[Path]) -> None:
    """Losses on the left, greedy BLEU on validation sentences and the final score on the right.

    Args:
        picture: The file to write.
        files: What multi30k.py wrote.
    """
    figure = Figure(figsize=(9.6, 4.0), dpi=160, layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for colour, path in zip(COLOURS, files, strict=False):
        draw_run(losses, scores, colour, json.loads(path.read_text()))
    losses.set(xlabel="optimizer steps", ylabel="loss (nats per token)")
    scores.set(xlabel="optimizer steps", ylabel="sacreBLEU")
    for axes in (losses, scores):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(picture)


def draw_run(losses: Any, scores: Any, colour: str, values: dict[str, Any]) -> None:
    """One run's curves.

    Args:
        losses: Axes of losses.
        scores: Axes of BLEU.
        colour: The run's colour.
        values: Its JSON values.
    """
    name, score = values["name"], values["score"]
    steps, training = zip(*values["training"], strict=True)
    losses.plot(
        steps, smooth(np.array(training)), color=colour, linewidth=1.0, alpha=0.6, label=f"{name}, training"
    )
    curve = [line for line in values["curve"] if line["step"]]
    at = [line["step"] for line in curve]
    losses.plot(
        at, [line["val_loss"] for line in curve], color=colour, marker="o", markersize=3,
        label=f"{name}, validation",
    )  # fmt: skip
    scores.plot(
        at, [line["val_bleu"] for line in curve], color=colour, marker="o", markersize=3,
        label=f"{name}, validation, greedy",
    )  # fmt: skip
    scores.plot(
        at[-1], score["value"], color=colour, marker="*", markersize=11, linestyle="none",
        label=f"{name}, test_2016_flickr, beam {score['beam']}: {score['value']:.1f}",
    )  # fmt: skip


if __name__ == "__main__":
    draw(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
