"""What a run shows: a live panel on a terminal, plain lines otherwise.

A closed standard output ends the display and not the training.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import NamedTuple, Protocol, runtime_checkable

from gpt_data.terminal import can_show, give_up_stdout
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*%#"
"""From low to high; the second where the output's encoding lacks the first."""
REDRAWS_PER_SECOND = 4
SPARKLINE_WIDTH = 40


class Report(NamedTuple):
    """The numbers of one step.

    Attributes:
        step: Steps taken.
        steps: Steps in all, as far as can be told; None if nothing is known yet.
        loss: Training loss of the step.
        val_loss: Latest validation loss, and the step that it is of.
        lr: Learning rate.
        grad_norm: Gradient norm before clipping.
        tokens_per_second: Speed of the step.
        mfu: Share of the device's peak; None if that is not known.
        peak_memory_bytes: Highest memory in use.
    """

    step: int
    steps: int | None
    loss: float
    val_loss: tuple[float, int] | None
    lr: float
    grad_norm: float
    tokens_per_second: float
    mfu: float | None
    peak_memory_bytes: int


@runtime_checkable
class Display(Protocol):
    """Shows a run."""

    def say(self, line: str) -> None:
        """Show a line that stays."""
        ...

    def report(self, report: Report) -> None:
        """Show the numbers of a step."""
        ...

    def doing(self, what: str, step: int, steps: int | None) -> None:
        """Show what takes the time now, after which step, and how many there will be if that is known."""
        ...

    def validated(self, val_loss: tuple[float, int]) -> None:
        """Show a validation loss, and the step that it is of, beside the numbers of the last step."""
        ...

    def __enter__(self) -> Display: ...

    def __exit__(self, *exception: object) -> None: ...


def describe(report: Report) -> str:
    """A step's numbers in one line, all but the step itself."""
    parts = [f"loss {report.loss:.4f}"]
    if report.val_loss is not None:
        parts.append(f"val {report.val_loss[0]:.4f} at {report.val_loss[1]}")
    parts += [f"lr {report.lr:.2e}", f"norm {report.grad_norm:.2f}", f"{report.tokens_per_second:,.0f} tok/s"]
    if report.mfu is not None:
        parts.append(f"MFU {report.mfu:.1%}")
    parts.append(f"{report.peak_memory_bytes / 1e9:.2f} GB")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> duration(3725.4)
    '1:02:05'
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


class PlainDisplay:
    """Lines on the standard output, one every ``every`` steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self._open = True
        self._began: tuple[float, int] | None = None

    def say(self, line: str) -> None:
        """Print a line."""
        if not self._open:
            return
        try:
            print(line, flush=True)
        except (OSError, ValueError):
            self._open = False
            give_up_stdout()

    def report(self, report: Report) -> None:
        """Print the step's line if it is one that is shown."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, report.step)
        if report.step % self.every and report.step not in (1, report.steps):
            return
        began, first = self._began
        pace = (now - began) / (report.step - first) if report.step > first else 0.0
        steps = report.steps
        left = f"  {duration(pace * (steps - report.step))} left" if pace and steps is not None else ""
        width = len(str(steps or ""))
        self.say(f"step {report.step:>{width}}/{steps or '?'}  {describe(report)}{left}")

    def doing(self, what: str, step: int, steps: int | None) -> None:
        """Nothing: lines are for what is done."""

    def validated(self, val_loss: tuple[float, int]) -> None:
        """Nothing: the evaluation has a line."""

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


class LeftColumn(TimeRemainingColumn):
    """What is left, in words: two times beside each other would not tell which is which."""

    def render(self, task: Task) -> Text:
        """The time, if the end is known."""
        time = super().render(task)
        return time.append(" left", style="default") if time else time


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
            LeftColumn(compact=True),
            console=self.console,
            expand=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._report: Report | None = None
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

    def report(self, report: Report) -> None:
        """Redraw the bar and the numbers."""
        self._losses.append(report.loss)
        self._bar.update(self._task, total=report.steps, completed=report.step)
        self._draw(report)

    def doing(self, what: str, step: int, steps: int | None) -> None:
        """Write it before the bar."""
        self._bar.update(self._task, description=what, total=steps, completed=step)

    def validated(self, val_loss: tuple[float, int]) -> None:
        """Redraw the numbers with it."""
        if self._report is not None:
            self._draw(self._report._replace(val_loss=val_loss))

    def _draw(self, report: Report) -> None:
        self._report = report
        lines = (Text(describe(report)), Text(curve(self._losses), style="cyan"))
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


def choose_display(*, plain: bool, every: int) -> Display:
    """The live display on a terminal, lines otherwise."""
    return PlainDisplay(every) if plain or not sys.stdout.isatty() else LiveDisplay()
