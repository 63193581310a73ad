"""What each step of a run took, where a device works while the host goes on."""

from __future__ import annotations

import time


class Stopwatch:
    """Laps on one clock: none of them overlap, and only a restart leaves time out.

    A step takes the lap of its own launch and that of the wait for its own metrics: on which of the two the
    host waits for the device differs from backend to backend.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Leave out what has passed since the last lap."""
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap or restart."""
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        return seconds
