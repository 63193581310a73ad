"""Draws the panel of a run as it stood at a step: ``python draw_panel.py RUN STEP panel.svg``.

The run's metrics are shown again to the display that showed them, on a clock that counts its steps' seconds.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt_trainer.report.display import LiveDisplay
from gpt_trainer.report.metrics import METRICS_NAME, read_metrics
from rich.console import Console, Group


def main(argv: Sequence[str]) -> int:
    """Write the picture."""
    run, step, target = Path(argv[0]), int(argv[1]), Path(argv[2])
    lines = [line for line in read_metrics(run / METRICS_NAME) if line["step"] <= step]
    last = max(line["step"] for line in read_metrics(run / METRICS_NAME))
    display, clock = LiveDisplay(), 0.0
    bar = display._bar
    bar.get_time = lambda: clock
    for task in bar.tasks:
        task.start_time = 0.0
        task._get_time = lambda: clock
    for line in lines:
        if "val_loss" in line:
            display.validated((line["val_loss"], line["step"]))
        if "loss" in line:
            clock += line["seconds"]
            display.doing("training", line["step"], last)
            display.report(line, last)
    console = Console(record=True, width=96, force_terminal=True, file=io.StringIO())
    shown = display._live.renderable
    assert isinstance(shown, Group), "at least one step is shown"
    console.print(shown)
    svg = console.export_svg(title=f"gpt-triton-train, {run.name}")
    # the fonts that it names are fetched from elsewhere
    target.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
