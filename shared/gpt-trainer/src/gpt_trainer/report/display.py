"""What a run shows: a live panel on a terminal, plain lines otherwise.

A closed standard output ends the display and not the training.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from gpt_data.terminal import can_show, give_up_stdout
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
"""From low to high; the second where the output's encoding lacks the first."""
REDRAWS_PER_SECOND = 4
SPARKLINE_WIDTH = 40


def describe(line: Mapping[str, Any], val_loss: tuple[float, int] | None) -> str:
    """A step's numbers in one line, all but the step itself, and the latest validation loss."""
    parts = [f"loss {line['loss']:.4f}"]
    if val_loss is not None:
        parts.append(f"val {val_loss[0]:.4f} at {val_loss[1]}")
    speed = f"{line['tokens_per_second']:,.0f} tok/s"
    parts += [f"lr {line['lr']:.2e}", f"norm {line['grad_norm']:.2f}", speed]
    if "mfu" in line:
        parts.append(f"MFU {line['mfu']:.1%}")
    parts.append(f"{line['peak_memory_bytes'] / 1e9:.2f} GB")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3725.4)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


class Ahead:
    """The time ahead, by the mean pace of the steps behind the first of this process, which compiles."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None

    def left(self, step: int, steps: int | None, now: float) -> float | None:
        """Seconds until the end; None if they cannot be told: after the first step, or for an unknown end."""
        if self._began is None:
            self._began = (now, step)
        began, first = self._began
        if steps is None or step <= first:
            return None
        return (now - began) / (step - first) * (steps - step)


class PlainDisplay:
    """Lines on the standard output, one every ``every`` steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._open = True
        self._ahead = Ahead()
        self._val_loss: tuple[float, int] | None = None

    def say(self, line: str) -> None:
        """Print a line."""
        if not self._open:
            return
        try:
            print(line, flush=True)
        except (OSError, ValueError):
            self._open = False
            give_up_stdout()

    def report(self, line: Mapping[str, Any], steps: int | None) -> None:
        """Print the step's line if it is one that is shown."""
        step = line["step"]
        left = self._ahead.left(step, steps, time.monotonic())
        if step % self.every and step not in (1, steps):
            return
        until = f"  {duration(left)} left" if left else ""
        width = len(str(steps or ""))
        self.say(f"step {step:>{width}}/{steps or '?'}  {describe(line, self._val_loss)}{until}")

    def doing(self, what: str, step: int, steps: int | None) -> None:
        """Nothing: lines are for what is done."""

    def validated(self, val_loss: tuple[float, int]) -> None:
        """Keep it for the steps' lines; the evaluation has its own."""
        self._val_loss = val_loss

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def sparkline(values: deque[float]) -> str:
    """A row of bars, lowest to highest value.

    >>> sparkline(deque([1.0, 2.0, 3.0]))
    '▁▅█'
    """
    low, high = min(values), max(values)
    bars = BARS if can_show(BARS) else ASCII_BARS
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((value - low) * scale)] for value in values)


def curve(losses: deque[float]) -> str:
    """The sparkline between what its highest and its lowest bar stand for.

    >>> curve(deque([3.0, 2.0, 1.0]))
    'loss 3.000 █▅▁ 1.000, the last 3 steps'
    """
    return f"loss {max(losses):.3f} {sparkline(losses)} {min(losses):.3f}, the last {len(losses)} steps"


class LeftColumn(ProgressColumn):
    """What is left, in words: two times beside each other would not tell which is which."""

    def render(self, task: Task) -> Text:
        """The time, if the end is known and not reached."""
        if task.total is None or task.completed >= task.total:
            return Text()
        left = task.fields["left"]
        time = "--:--" if left is None else duration(left).removeprefix("0:")
        return Text.assemble((time, "progress.remaining"), " left")


class LiveDisplay:
    """A progress bar with the numbers of the last step and a curve of the loss under it.

    The bar says what is being done and for how long.
    """

    def __init__(self) -> None:
        self.console = Console()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("in"),
            TimeElapsedColumn(),
            LeftColumn(),
            console=self.console,
            expand=True,
        )
        self._task = self._bar.add_task("starting", total=None, left=None)
        self._line: Mapping[str, Any] | None = None
        self._val_loss: tuple[float, int] | None = None
        self._ahead = Ahead()
        self._losses: deque[float] = deque(maxlen=SPARKLINE_WIDTH)
        self._live = Live(self._bar, console=self.console, refresh_per_second=REDRAWS_PER_SECOND)
        self._open = True

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        if self._open:
            try:
                self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            except OSError:
                self._open = False

    def report(self, line: Mapping[str, Any], steps: int | None) -> None:
        """Redraw the bar and the numbers."""
        self._line = line
        self._losses.append(line["loss"])
        left = self._ahead.left(line["step"], steps, self._bar.get_time())
        self._bar.update(self._task, total=steps, completed=line["step"], left=left)
        self._draw()

    def doing(self, what: str, step: int, steps: int | None) -> None:
        """Write it before the bar."""
        self._bar.update(self._task, description=what, total=steps, completed=step)

    def validated(self, val_loss: tuple[float, int]) -> None:
        """Redraw the numbers with it."""
        self._val_loss = val_loss
        self._draw()

    def _draw(self) -> None:
        if self._line is None:
            return
        lines = (Text(describe(self._line, self._val_loss)), Text(curve(self._losses), style="cyan"))
        try:
            self._live.update(Group(self._bar, *lines))
        except OSError:
            self._open = False

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._live.stop()
        except OSError:
            give_up_stdout()


def choose_display(*, plain: bool, every: int) -> PlainDisplay | LiveDisplay:
    """The live display on a terminal, lines otherwise."""
    return PlainDisplay(every) if plain or not sys.stdout.isatty() else LiveDisplay()
