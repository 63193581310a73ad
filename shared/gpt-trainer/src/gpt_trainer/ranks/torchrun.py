"""One process a device: how they start, and where they meet, by ``torch.distributed``.

The processes of one host speak over the loopback address alone. Tensors go by NCCL between GPUs and by gloo
between CPUs; small values through a store, see ``gpt_trainer.ranks``.
"""

from __future__ import annotations

import atexit
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt_data.stopping import STARTER
from gpt_data.terminal import warn

from gpt_trainer.errors import STOPPED, InputError, PeerLostError
from gpt_trainer.ranks.peers import Alone, Peers
from gpt_trainer.ranks.place import Meeting, find_meeting
from gpt_trainer.ranks.watch import PATIENCE_SECONDS

if TYPE_CHECKING:
    import torch.distributed as dist

_FOREVER = timedelta(days=30)
"""Collectives wait: the watch over the processes knows better than a clock when to end."""
_SAVE_SECONDS = "120"
"""What torchrun gives processes that were asked to stop."""


def join(devices: int) -> Peers:
    """Meet the other processes, if torchrun or srun started more than this one.

    Raises:
        InputError: If both they and ``--devices`` say how many there are, or they say too little.
        PeerLostError: If the others cannot be reached.
    """
    meeting = find_meeting(os.environ)
    if meeting is None:
        return Alone()
    if devices > 1:
        raise InputError("--devices starts the processes: it does not go with torchrun or srun")
    _stay_inside(meeting)
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(meeting.place.local_rank % torch.cuda.device_count())
    server = None if meeting.served or meeting.place.rank else _serve(meeting)
    store = _client(meeting)
    engines = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    place = meeting.place
    tensors = dist.PrefixStore("tensors", store)
    dist.init_process_group(engines, store=tensors, rank=place.rank, world_size=place.world, timeout=_FOREVER)
    peers = Peers(place, partial(TorchStore, meeting, server))
    atexit.register(_leave, peers)
    return peers


def _leave(peers: Peers) -> None:
    """Take leave of the others; where a process has failed, a farewell could wait for ever."""
    import torch.distributed as dist

    failed = peers.failed
    if failed is None or isinstance(failed, SystemExit):
        dist.destroy_process_group()
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(130 if isinstance(failed, KeyboardInterrupt) else getattr(failed, "exit_status", 1))


def _stay_inside(meeting: Meeting) -> None:
    """Processes of one host listen on its loopback interface."""
    # a wait that ends is how we look around, and no reason for a warning each time
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if meeting.alone:
        loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        for engine in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{engine}_SOCKET_IFNAME", loopback)


def _serve(meeting: Meeting) -> dist.TCPStore:
    """Answer at the address of the meeting, and on no other."""
    import torch.distributed as dist

    try:
        listening = socket.create_server((meeting.address, meeting.port), backlog=meeting.place.world)
        number = listening.detach()
        return dist.TCPStore(
            meeting.address, meeting.port, is_master=True, wait_for_workers=False, master_listen_fd=number
        )
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"cannot listen on {meeting.address}:{meeting.port}: {error}; set MASTER_PORT"
        ) from None


def _client(meeting: Meeting) -> dist.Store:
    """A connection of its own."""
    import torch.distributed as dist

    try:
        store = dist.TCPStore(
            meeting.address,
            meeting.port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=PATIENCE_SECONDS),
        )
    except RuntimeError as error:
        raise PeerLostError(f"{meeting.address}:{meeting.port} does not answer: {error}") from None
    return dist.PrefixStore(f"attempt/{meeting.place.attempt}", store)


class TorchStore:
    """Implements ``gpt_trainer.ranks.store.Store``.

    Args:
        server: Kept while this is, if this process answers the others.
    """

    def __init__(self, meeting: Meeting, server: Any) -> None:
        self._server, self._store = server, _client(meeting)

    def set(self, key: str, value: bytes) -> None:
        """Write a value."""
        self._ask(lambda: self._store.set(key, value))  # type: ignore[arg-type]  # bytes are taken

    def get(self, key: str, seconds: float) -> bytes | None:
        """A value, once it is there; None if it is not by then."""
        if not (self._ask(lambda: self._store.check([key])) or (seconds and self._wait(key, seconds))):
            return None
        found: bytes = self._ask(lambda: self._store.get(key))
        return found

    def delete(self, key: str) -> None:
        """Forget a value."""
        self._ask(lambda: self._store.delete_key(key))

    def _wait(self, key: str, seconds: float) -> bool:
        import torch.distributed as dist

        try:
            self._ask(lambda: self._store.wait([key], timedelta(seconds=seconds)))
        except dist.DistStoreError:
            return False
        return True

    def _ask(self, question: Any) -> Any:
        import torch.distributed as dist

        try:
            return question()
        except dist.DistStoreError:
            raise
        except RuntimeError as error:
            raise ConnectionError(str(error)) from None


def launch(module: str, devices: int, words: Sequence[str]) -> int:
    """Have torchrun start a process for each device of this host; the exit status of the first that failed.

    Its rendezvous is a file, so that nothing listens before the processes do.

    Args:
        module: The command that each runs.
        words: Its arguments; those about devices are left out.
    """
    os.environ |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", STARTER: str(os.getpid())}
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _SAVE_SECONDS)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // devices)))
    import torch
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    there = torch.cuda.device_count()
    if there and devices > there and not _on_cpu(words):
        raise InputError(f"--devices {devices}: this host has {there} GPUs")
    # that processes are ended is no news: who failed or heard a signal has said so; each module has its level
    for name in logging.root.manager.loggerDict:
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.ERROR)
    if sys.stderr is not None and sys.stderr.isatty():
        warn(f"starting {devices} processes")
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--rdzv-backend=c10d", f"--rdzv-endpoint={Path(folder) / 'rendezvous'}"]
        flags += ["--rdzv-conf=store_type=file", "--local-addr=127.0.0.1", f"--nproc-per-node={devices}"]
        try:
            run.run(run.parse_args([*flags, "-m", module, *without_devices(words)]))  # type: ignore[no-untyped-call]  # torchrun has no types
        except ChildFailedError as error:
            _, failure = error.get_first_failure()
            return failure.exitcode if failure.exitcode > 0 else PeerLostError.exit_status
        except SignalException:
            return STOPPED
    return 0


def _on_cpu(words: Sequence[str]) -> bool:
    """Whether the arguments keep to the CPU."""
    return "--device=cpu" in words or ("--device", "cpu") in pairwise(words)


def without_devices(words: Sequence[str]) -> list[str]:
    """Arguments but for ``--devices N``.

    >>> without_devices(["--devices", "2", "--lr", "1", "--devices=3"])
    ['--lr', '1']
    """
    kept, skip = [], False
    for word in words:
        if not skip and word != "--devices" and not word.startswith("--devices="):
            kept.append(word)
        skip = word == "--devices" and not skip
    return kept
