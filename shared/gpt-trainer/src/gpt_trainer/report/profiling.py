"""Recording a few steps with the framework's own profiler."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from gpt_trainer.backend import Profile
from gpt_trainer.run.task import Task

WARMUP_STEPS = 3
"""Steps before the recording: compilation and first allocations tell nothing about the rest."""
FOLDER = "profile"


class ProfileWindow:
    """Records the steps after the first few of this process.

    Args:
        run: The run's folder; the trace goes into ``profile`` in it. None on a rank that writes nothing: it
            only waits where the others do.
        count: Steps to record; 0 for none.
    """

    def __init__(self, task: Task, run: Path | None, count: int, start: int) -> None:
        self._task, self._folder = task, None if run is None else run / FOLDER
        self._first, self._last = start + WARMUP_STEPS, start + WARMUP_STEPS + count
        self._recording = ExitStack()
        self._profile: Profile | None = None

    def begins(self, step: int) -> bool:
        """Whether ``step`` is the first one to be recorded."""
        return step == self._first < self._last

    def begin(self) -> None:
        """Record from here on; no step that is launched may be under way."""
        self._task.synchronize()
        if self._folder is not None:
            self._profile = self._recording.enter_context(self._task.profile(self._folder))

    def ends(self, step: int) -> bool:
        """Whether the recording ends when ``step`` steps are taken."""
        return self._first < step == self._last

    def end(self, say: Callable[[str], None]) -> None:
        """Write the trace, which may take longer than the steps, and say what it holds."""
        self._task.synchronize()
        self._recording.close()
        if self._profile is not None:
            say(f"{self._last - self._first} steps recorded in {self._folder}\n{self._profile.table()}")

    def __enter__(self) -> ProfileWindow:
        return self

    def __exit__(self, *exception: object) -> None:
        self._recording.close()
