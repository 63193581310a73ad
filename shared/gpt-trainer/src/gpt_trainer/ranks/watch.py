"""Signs of life between the processes of a run: who is gone or hangs is named, and all end within seconds.

Each process writes a sign of life every second and looks at the next rank's: two messages a second, however
many there are. Whoever finds one missing writes the verdict, which all read. Where a process cannot raise
it, since it waits in a collective for the one that is lost, the watch ends it.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from gpt_data.errors import first_line
from gpt_data.stopping import StopFlag
from gpt_data.terminal import warn

from gpt_trainer.errors import STOPPED, CommandError, PeerLostError, StoppedError
from gpt_trainer.ranks.place import Place
from gpt_trainer.ranks.store import Store

POLL_SECONDS = 0.5
BEAT_SECONDS = 1.0
SILENCE_SECONDS = 15.0
"""A process without a sign of life for so long is taken for dead; a compiler may hold Python for seconds."""
ALARM_SECONDS = 4.0
"""The same when a collective has failed, or the process is gone, each of which is a sign by itself."""
GRACE_SECONDS = 5.0
"""What a process has to end by itself."""
PATIENCE_SECONDS = 600.0
VERDICT = "verdict"


class Sign(NamedTuple):
    """A sign of life.

    Attributes:
        beat: Its number.
        progress: How often the process has come on.
        waiting: Whether it waits for others.
        machine: Which machine, since it was started, and which of its tables of processes.
        pid: The process's number there.
    """

    beat: int
    progress: int
    waiting: bool
    machine: str
    pid: int


def this_machine() -> str:
    """``Sign.machine`` of this process; empty where Linux does not tell it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def is_gone(sign: Sign) -> bool:
    """Whether the process is known to have ended: one of this machine, which no longer runs."""
    if not sign.machine or sign.machine != this_machine():
        return False
    try:
        stat = Path(f"/proc/{sign.pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    # the name in brackets may hold anything
    return stat.rpartition(") ")[2][:1] in "ZX"


class Seen:
    """What was seen of another process: its last sign and since when it, and its progress, are the same."""

    def __init__(self) -> None:
        self.sign: Sign | None = None
        self.alive = self.moved = time.monotonic()

    def take(self, sign: Sign) -> None:
        """Take in what was read."""
        now, before = time.monotonic(), self.sign
        if before is None or sign.beat != before.beat:
            self.alive = now
        if before is None or sign.progress != before.progress or sign.waiting:
            self.moved = now
        self.sign = sign


class Watch:
    """The thread that gives signs of life and looks for the next rank's.

    Args:
        stop: Every loop asks it, which counts as coming on.
        patience: Seconds that a process may take between.
    """

    def __init__(self, place: Place, store: Store, stop: StopFlag, patience: Callable[[], float]) -> None:
        self._place, self._store = place, store
        self._stop, self._patience = stop, patience
        self._verdict: CommandError | None = None
        self._machine = this_machine()
        self._waiting, self._met, self._alarm = False, 0, False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._beat(0)
        self._thread.start()

    def end(self) -> None:
        """End; nobody is to miss this process any more."""
        self._ended.set()
        if self._verdict is None:
            self._thread.join(2 * BEAT_SECONDS)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within, this process waits for others: it does not hang."""
        self._met += 1
        self._waiting = True
        try:
            yield
        finally:
            self._waiting = False

    def refuse_lost(self) -> None:
        """Say so if a process is lost.

        Raises:
            PeerLostError: Naming it.
            StoppedError: If it ended since it was asked to.
        """
        if self._verdict is not None:
            raise self._verdict

    def tell(self, error: BaseException) -> None:
        """Let the others know why this process ends."""
        status = getattr(error, "exit_status", 1)
        self._pronounce(status, f"rank {self._place.rank} ended: {first_line(error)}")

    def explain(self, error: Exception) -> Exception:
        """The verdict, if one comes soon; otherwise the error."""
        if isinstance(error, CommandError):
            return error
        self._alarm = True
        # torchrun asks the others to stop as soon as it misses one: first they say why they end
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        until = time.monotonic() + ALARM_SECONDS + GRACE_SECONDS
        while self._verdict is None and time.monotonic() < until:
            time.sleep(0.1)
        return error if self._verdict is None else self._verdict

    def _run(self) -> None:
        others = {rank: Seen() for rank in range(self._place.world) if rank != self._place.rank}
        count = 0
        while self._verdict is None and not self._ended.wait(BEAT_SECONDS):
            count += 1
            try:
                self._beat(count)
                self._look(others)
            except ConnectionError:
                self._verdict = PeerLostError(f"{self._keeper()} is gone: it does not answer")
        if self._verdict is not None and not self._ended.wait(GRACE_SECONDS):
            self._exit(self._verdict)

    def _keeper(self) -> str:
        return (
            "rank 0, or the program that started it," if self._place.rank else "the program that started this"
        )

    def _beat(self, count: int) -> None:
        sign = Sign(count, self._stop.asked + self._met, self._waiting, self._machine, os.getpid())
        self._store.set(f"sign/{self._place.rank}", json.dumps(sign).encode())

    def _look(self, others: dict[int, Seen]) -> None:
        told = self._store.get(VERDICT, 0.0)
        if told is not None:
            status, line = json.loads(told)
            self._verdict = StoppedError(line) if status == STOPPED else PeerLostError(line)
            return
        following = (self._place.rank + 1) % self._place.world
        for rank in others if self._alarm else [following]:
            sign = self._store.get(f"sign/{rank}", 0.0)
            if sign is not None:
                others[rank].take(Sign(*json.loads(sign)))
            self._judge(rank, others[rank])

    def _judge(self, rank: int, seen: Seen) -> None:
        now, patience = time.monotonic(), self._patience()
        alarm = self._alarm or (seen.sign is not None and is_gone(seen.sign))
        silence = min(ALARM_SECONDS if alarm else SILENCE_SECONDS, patience)
        said = None
        if seen.sign is None:
            said = f"has not come in {patience:.0f} s" if now - seen.alive > patience else None
        elif now - seen.alive > silence:
            said = f"is lost: no sign of life for {now - seen.alive:.0f} s"
        elif now - seen.moved > patience:
            said = f"hangs: it has not come on for {patience:.0f} s"
        if said is not None:
            self._pronounce(PeerLostError.exit_status, f"rank {rank} {said}")

    def _pronounce(self, status: int, line: str) -> None:
        advice = "what was saved is as it was: resume it, with as many processes as there are"
        said = line if status == STOPPED else f"{line}; {advice}"
        with suppress(ConnectionError):
            self._store.set(VERDICT, json.dumps([status, said]).encode())

    def _exit(self, verdict: CommandError) -> None:
        warn(str(verdict))
        os._exit(verdict.exit_status)
