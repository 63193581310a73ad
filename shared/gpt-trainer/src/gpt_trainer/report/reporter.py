"""Where the numbers of a run go: its metrics file, trackers, and the display."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gpt_data.terminal import warn

from gpt_trainer.report.display import choose_display
from gpt_trainer.report.metrics import MetricsFile
from gpt_trainer.report.sinks import open_sinks
from gpt_trainer.run.start import Fresh
from gpt_trainer.run.task import Measured, Task
from gpt_trainer.settings.sections import UNKNOWN
from gpt_trainer.settings.values import flat


class Silence:
    """A ``Reporter`` of the processes that have nothing to say, all but the first: its methods do nothing."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(self, *exception: object) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class Reporter:
    """Writes each line of figures everywhere, and shows it.

    Entered, it says what is trained, and opens the metrics file, cut back to what the run goes on from.

    Raises:
        InputError: If a tracker does not start.
        WriteError: On entering, if the metrics file cannot be written.
    """

    def __init__(self, run: Path, config: Any, task: Task, start: Fresh) -> None:
        self._run, self._task, self._start = run, task, start
        self._sinks = open_sinks(config.reports, run, flat(config))
        self._display = choose_display(plain=config.reports.plain, every=config.reports.log_every)
        self._metrics: MetricsFile | None = None
        self._open = ExitStack()

    def __enter__(self) -> Reporter:
        for line in self._task.notes():
            warn(line)
        self.say(f"{self._run}: {self._task.heading()}")
        start, state = self._start, self._start.state
        self._metrics = MetricsFile(self._run, start.saved_step, state.evaluated, state.measured)
        self._open.callback(self._metrics.close)
        self._open.enter_context(self._display)
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()
        for sink in self._sinks:
            sink.close()

    def say(self, text: str) -> None:
        """Show a line that stays."""
        self._display.say(text)

    def doing(self, what: str, step: int, end: int) -> None:
        """Show what takes the time now."""
        self._display.doing(what, step, _known(end))

    def step(self, line: Mapping[str, Any], end: int) -> None:
        """Write and show the figures of a step."""
        self._write(line)
        if not line.get("updated", True):
            self.say(f"step {line['step']}: left out, gradient norm {line['grad_norm']:.2f}")
        self._display.report(line, _known(end))

    def measured(self, step: int, found: Measured) -> None:
        """Write and show what was measured after a step."""
        if found.loss is not None:
            self._display.validated((found.loss, step))
        self._write({"step": step, **found.line})
        self.say(f"step {step}: {found.said}")

    def flush(self) -> None:
        """Have the lines so far on disk."""
        if self._metrics is not None:
            self._metrics.flush()

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._metrics is not None, "begun before the loop"
        self._metrics.write(line)
        for sink in self._sinks:
            sink.write(line)


def _known(end: int) -> int | None:
    """The last step, if something is known of it."""
    return None if end == UNKNOWN else end
