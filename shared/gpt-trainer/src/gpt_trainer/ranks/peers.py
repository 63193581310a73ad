"""What the processes of a run tell each other besides tensors: small JSON values, through a store they share.

Every process does the same work in the same order, each on its share of the rows; rank 0 alone says and
writes. They meet in ``Peers.gather``, at least once a step, and nowhere else but in a backend's collectives.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from gpt_data.stopping import StopFlag

from gpt_trainer.errors import InputError, PeerLostError
from gpt_trainer.ranks.place import Place
from gpt_trainer.ranks.store import Store
from gpt_trainer.ranks.watch import PATIENCE_SECONDS, POLL_SECONDS, Watch

T = TypeVar("T")


class Peers:
    """The processes of a run, seen from one of them.

    Args:
        open_store: A connection of its own to the table of all; called twice, since one that waits must not
            keep the other.

    Attributes:
        place: Where this one stands.
        stop: Asks this one to stop; every loop asks it, which counts as coming on.
        agreed: Says the same everywhere, for loops that all processes run alike: asking it is a meeting.
        patience: Seconds that each may take to come on.
        failed: What this one ended with, if not well.
    """

    patience = PATIENCE_SECONDS
    failed: BaseException | None = None

    def __init__(self, place: Place, open_store: Callable[[], Store]) -> None:
        self.place, self.stop = place, StopFlag()
        self.agreed: StopFlag = _Agreed(self)
        self._store = open_store()
        self._watch = Watch(place, open_store(), self.stop, lambda: self.patience)
        self._count = 0

    def __enter__(self) -> Peers:
        self._watch.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # a framework's error in a collective means that a process is lost, if one is
        meant = self._watch.explain(error) if isinstance(error, Exception) else error
        self.failed = meant
        try:
            if meant is None:
                self.gather(None, "the end")
            elif not isinstance(meant, PeerLostError):
                self._watch.tell(meant)
        finally:
            self._watch.end()
        if meant is not None and meant is not error:
            raise meant from None

    def gather(self, value: Any, what: str) -> list[Any]:
        """Everyone's value, by rank; every process calls it, in the same order. It waits for all.

        Args:
            value: A small JSON value; numbers need not be finite.
            what: The same everywhere: what is being agreed on, for messages.

        Raises:
            PeerLostError: If a process is gone, hangs, or is somewhere else in the program.
            StoppedError: If one ended since it was asked to, before there was anything to save.
        """
        self._count += 1
        mine = json.dumps([what, value]).encode()
        with self._watch.waiting():
            return self._exchange(f"gather/{self._count}", mine, what)

    def _exchange(self, key: str, mine: bytes, what: str) -> list[Any]:
        """Rank 0 collects and hands out: two messages for each process, however many there are."""
        if self.place.rank:
            self._store.set(f"{key}/{self.place.rank}", mine)
            told: list[Any] = json.loads(self._wait(f"{key}/all"))
            return told
        found = [json.loads(mine)]
        for rank in range(1, self.place.world):
            found.append(json.loads(self._wait(f"{key}/{rank}")))
            self._store.delete(f"{key}/{rank}")
        apart = [rank for rank, (its, _) in enumerate(found) if its != what]
        if apart:
            raise PeerLostError(f"rank {apart[0]} is at {found[apart[0]][0]!r} while rank 0 is at {what!r}")
        values = [value for _, value in found]
        self._store.set(f"{key}/all", json.dumps(values).encode())
        # all have come here, so all have read the one before
        self._store.delete(f"gather/{self._count - 1}/all")
        return values

    def _wait(self, key: str) -> bytes:
        while True:
            self._watch.refuse_lost()
            with suppress(ConnectionError):
                found = self._store.get(key, POLL_SECONDS)
                if found is not None:
                    return found
                continue
            # the watch says who kept it
            time.sleep(POLL_SECONDS)

    def first(self, value: T, what: str) -> T:
        """Rank 0's value; see ``gather``."""
        told: T = self.gather(value if self.place.rank == 0 else None, what)[0]
        return told

    def any(self, flag: bool, what: str) -> bool:
        """Whether it is true somewhere; see ``gather``."""
        return any(self.gather(flag, what))

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """What one process of each host does first, and the others when it is done."""
        first = self.place.local_rank == 0
        if not first:
            self.gather(None, "the first of each host")
        yield
        if first:
            self.gather(None, "the first of each host")

    def refuse_difference(self, values: dict[str, Any], what: str) -> None:
        """Make sure that all processes were asked for the same.

        Args:
            values: JSON values by name.

        Raises:
            InputError: On every rank, naming the first that differs from rank 0, and in what.
        """
        told = self.gather(values, what)
        for rank, its in enumerate(told):
            names = [name for name in {**told[0], **its} if its.get(name) != told[0].get(name)]
            if names:
                differing = "; ".join(
                    f"{name} is {its.get(name)} there and {told[0].get(name)} on rank 0" for name in names[:3]
                )
                raise InputError(f"rank {rank} differs from rank 0 in {what}: {differing}")


class Alone(Peers):
    """A run of one process: all is agreed at once."""

    def __init__(self, devices: int = 1) -> None:
        self.place = Place(devices=devices)
        self.stop = self.agreed = StopFlag()

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nobody waits."""

    def gather(self, value: Any, what: str) -> list[Any]:
        """The value of the only one."""
        del what
        return [value]


class _Agreed(StopFlag):
    """True everywhere once a signal has come anywhere; asking is a meeting."""

    def __init__(self, peers: Peers) -> None:
        super().__init__()
        self._peers = peers

    def __call__(self) -> bool:
        return self._peers.any(self._peers.stop(), "whether to stop")

    def __bool__(self) -> bool:
        return self()
