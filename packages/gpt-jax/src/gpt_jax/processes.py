"""One process a host, over all of its devices: how they find each other, and the table in which they meet.

Who starts them says where: torchrun's variables, set by anyone, or SLURM's srun; under Open MPI and
Kubernetes JAX finds out by itself. Tensors go by NCCL between GPUs and by gloo between CPUs; small values
through JAX's coordination service, see ``gpt_trainer.ranks``.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from gpt_trainer.errors import InputError, PeerLostError
from gpt_trainer.ranks.peers import Alone, Peers
from gpt_trainer.ranks.place import FIRST_PORT, LOOPBACK, PORTS, Meeting, Place, find_meeting
from gpt_trainer.ranks.watch import PATIENCE_SECONDS

from gpt_jax.coordinator import FAREWELL_SECONDS, LONG


def join(devices: int) -> Peers:
    """Meet the other processes, if there are any.

    Args:
        devices: Of each process.

    Raises:
        InputError: If the variables of the program that started them say too little, or the port is taken.
        PeerLostError: If the others cannot be reached.
    """
    meeting = find_meeting(os.environ)
    if meeting is None and not _left_to_jax(os.environ):
        return Alone(devices)
    import jax

    # it would take SIGTERM for itself
    jax.config.update("jax_enable_preemption_service", False)
    words = _mpi_words(os.environ) if meeting is None else _words(meeting, devices)
    try:
        with _lasting_service():
            jax.distributed.initialize(
                **words, initialization_timeout=int(PATIENCE_SECONDS), heartbeat_timeout_seconds=LONG
            )
    except (RuntimeError, ValueError) as error:
        raise PeerLostError(f"the other processes cannot be reached: {str(error).splitlines()[0]}") from None
    return JaxPeers(replace(_place() if meeting is None else meeting.place, devices=devices))


def _left_to_jax(environment: Mapping[str, str]) -> bool:
    """Whether mpirun or a Kubernetes job with an index for each pod has started this process."""
    in_pod = {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
    return int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1 or in_pod


def _words(meeting: Meeting, devices: int) -> dict[str, Any]:
    """Where to meet, and which devices are this process's; JAX by itself would listen on every address."""
    place = meeting.place
    # torchrun answers at the port that it names
    address = f"{meeting.address}:{meeting.port + meeting.served}"
    first = place.local_rank * devices
    return {
        "coordinator_address": address,
        "coordinator_bind_address": address,
        "num_processes": place.world,
        "process_id": place.rank,
        "local_device_ids": list(range(first, first + devices)),
    }


def _mpi_words(environment: Mapping[str, str]) -> dict[str, Any]:
    """Nothing but the loopback address where mpirun has started all on one host."""
    if environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") != environment.get("OMPI_COMM_WORLD_SIZE", ""):
        return {}
    port = FIRST_PORT + int(environment.get("OMPI_MCA_ess_base_jobid", "0")) % PORTS
    address = f"{LOOPBACK}:{port}"
    return {"coordinator_address": address, "coordinator_bind_address": address}


def _place() -> Place:
    """As JAX has found it out."""
    from jax._src.distributed import global_state

    local = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK", "0"))
    return Place(global_state.process_id, global_state.num_processes, local)


class Coordinator:
    """JAX's coordination service in a process of its own, which outlives this one by some seconds.

    JAX itself keeps it in process 0, and aborts every other process at once when that one is lost. Here the
    others live on to name it.
    """

    def __init__(self, address: str, world: int, **limits: Any) -> None:
        del limits
        _wait_for(address, FAREWELL_SECONDS)
        words = [sys.executable, "-m", "gpt_jax.coordinator", address, str(world)]
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise InputError(f"cannot listen on {address}")

    def shutdown(self) -> None:
        """End it at once."""
        self._process.communicate(b"end")


def _wait_for(address: str, seconds: float) -> None:
    """Make sure that nobody listens there; a run that was lost may do so for a while.

    JAX's service would listen beside another on the same port, and mix two runs up.

    Raises:
        InputError: If it is still taken then, or not an address of this host.
    """
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_server((host, int(port))).close()
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > end:
                raise InputError(f"cannot listen on {address}: {error}; set MASTER_PORT") from None
        time.sleep(1.0)


@contextmanager
def _lasting_service() -> Iterator[None]:
    """Have ``jax.distributed.initialize``, which has no arguments for that, take ``Coordinator``.

    And have a client that is dropped not wait for the others.
    """
    from jax._src.lib import _jax

    service, client = _jax.get_distributed_runtime_service, _jax.get_distributed_runtime_client
    _jax.get_distributed_runtime_service = Coordinator
    _jax.get_distributed_runtime_client = partial(client, shutdown_on_destruction=False)
    try:
        yield
    finally:
        _jax.get_distributed_runtime_service, _jax.get_distributed_runtime_client = service, client


class JaxPeers(Peers):
    """The processes that JAX has brought together."""

    def __init__(self, place: Place) -> None:
        from jax._src.distributed import global_state  # there is no public name; orbax reads it too

        self._state = global_state
        super().__init__(place, lambda: JaxStore(global_state.client))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            super().__exit__(kind, error, trace)
        except BaseException:
            self._leave()
            raise
        if error is not None:
            self._leave()

    def _leave(self) -> None:
        """Do not wait at the end for processes that may be gone."""
        self._state.client = self._state.service = None


class JaxStore:
    """Implements ``gpt_trainer.ranks.store.Store``.

    Args:
        client: Of JAX's coordination service; any number of threads may ask it.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def set(self, key: str, value: bytes) -> None:
        """Write a value."""
        self._ask(lambda: self._client.key_value_set_bytes(key, value, allow_overwrite=True))

    def get(self, key: str, seconds: float) -> bytes | None:
        """A value, once it is there; None if it is not by then."""
        found: bytes | None = self._ask(
            lambda: (
                self._client.blocking_key_value_get_bytes(key, int(1000 * seconds))
                if seconds
                else self._client.key_value_try_get_bytes(key)
            )
        )
        return found

    def delete(self, key: str) -> None:
        """Forget a value."""
        self._ask(lambda: self._client.key_value_delete(key))

    def _ask(self, question: Any) -> Any:
        import jax

        try:
            return question()
        except jax.errors.JaxRuntimeError as error:
            if str(error).startswith(("NOT_FOUND", "DEADLINE_EXCEEDED")):
                return None
            raise ConnectionError(str(error)) from None
