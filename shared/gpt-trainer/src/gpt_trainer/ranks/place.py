"""Where a process stands among those of its run, as torchrun or SLURM's srun, which started it, says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from gpt_trainer.errors import InputError

LOOPBACK = "127.0.0.1"
FIRST_PORT, PORTS = 20_000, 10_000
"""Ports of SLURM jobs, by the job's number."""


@dataclass(frozen=True)
class Place:
    """Where a process stands.

    Attributes:
        rank: Its number among all, from 0; rank 0 alone says and writes.
        world: How many there are.
        local_rank: Its number on its host.
        devices: Devices that this process computes on; every process of a run has as many.
        attempt: How often the run was started again after it had lost a process.
        restarts: How often it may be.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    devices: int = 1
    attempt: int = 0
    restarts: int = 0

    @property
    def shares(self) -> int:
        """Parts into which the rows of a step are cut: one for each device of the run."""
        return self.world * self.devices


ALONE = Place()


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a run find each other.

    Attributes:
        place: This process among them.
        address: Host of the process that the others ask.
        port: Its port.
        alone: Whether all are on one host.
        served: Whether the program that started them answers there; rank 0 does otherwise.
    """

    place: Place
    address: str
    port: int
    alone: bool
    served: bool = False


def find_meeting(environment: Mapping[str, str]) -> Meeting | None:
    """What torchrun or srun has told this process; None for a process on its own.

    Raises:
        InputError: If what they say is incomplete.
    """
    try:
        if int(environment.get("WORLD_SIZE", "1")) > 1:
            return _of_torchrun(environment)
        # sbatch sets SLURM_NTASKS for the script as well: only srun's own variables tell its tasks
        if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
            return _of_srun(environment)
    except (KeyError, ValueError) as error:
        raise InputError(
            f"the environment of a process of several is incomplete or damaged: {error}"
        ) from None
    return None


def _of_torchrun(environment: Mapping[str, str]) -> Meeting:
    world, address = int(environment["WORLD_SIZE"]), environment["MASTER_ADDR"]
    return Meeting(
        Place(
            int(environment["RANK"]),
            world,
            int(environment["LOCAL_RANK"]),
            attempt=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
            restarts=int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")),
        ),
        address,
        int(environment["MASTER_PORT"]),
        alone=address == LOOPBACK or int(environment.get("LOCAL_WORLD_SIZE", "0")) == world,
        served=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _of_srun(environment: Mapping[str, str]) -> Meeting:
    alone = environment["SLURM_STEP_NUM_NODES"] == "1"
    first = LOOPBACK if alone else first_host(environment["SLURM_STEP_NODELIST"])
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
    return Meeting(
        Place(
            int(environment["SLURM_PROCID"]),
            int(environment["SLURM_STEP_NUM_TASKS"]),
            int(environment["SLURM_LOCALID"]),
        ),
        environment.get("MASTER_ADDR", first),
        int(environment.get("MASTER_PORT", FIRST_PORT + (job + step) % PORTS)),
        alone=alone,
    )


def first_host(hosts: str) -> str:
    """The first name of a list as SLURM writes it.

    >>> first_host("node[03-05,9],login1"), first_host("a1,b2"), first_host("gpu-2-[7]x")
    ('node03', 'a1', 'gpu-2-7x')
    """
    found = re.fullmatch(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?(?:[,\[].*)?", hosts)
    if found is None:
        raise ValueError(f"SLURM_STEP_NODELIST is {hosts!r}")
    return "".join(part or "" for part in found.groups())
