"""How a backend is found: a package registers one ``BackendSpec`` under ``gpt_trainer.backends``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from gpt_data.terminal import named

from gpt_trainer.backend import Backend
from gpt_trainer.ranks.peers import Alone, Peers

ENTRY_POINT_GROUP = "gpt_trainer.backends"


@dataclass(frozen=True)
class BackendSpec:
    """What a backend package registers.

    Attributes:
        name: The package's name, as in ``gpt-triton``.
        options: Frozen dataclass of the flags that only this backend has, each with a default.
        create: Builds the backend from the model's sizes, the optimizer, the runtime and ``options``, and, in
            a run of several, this process's ``Place``. It raises ``ValueError`` for a device or an option
            that this machine lacks, or for a ``shard`` that the backend has not.
        has_gpu: Whether this machine has a GPU that the backend can use, cheaply told.
        join: Meets the other processes of the run, given the devices that were asked for: before the
            framework is used otherwise, and without importing it where there are no others.
        launch: Starts a process of the same command for each device, given how many and the arguments, and
            gives the exit status; None where one process takes all devices of its host.
    """

    name: str
    options: type[Any]
    create: Callable[..., Backend]
    has_gpu: Callable[[], bool]
    join: Callable[[int], Peers] = Alone
    launch: Callable[[int, Sequence[str]], int] | None = None


def imported(place: str) -> Callable[..., Any]:
    """A function that imports what it calls when it is called, so that a registration costs no framework.

    Args:
        place: Module and name, as in ``gpt_triton.backend:TritonBackend``.
    """
    return lambda *given: named(place)(*given)


def installed_backends() -> list[str]:
    """Names of the backends that are installed, sorted; none is imported."""
    return sorted(point.name for point in entry_points(group=ENTRY_POINT_GROUP))


def find_backend(name: str) -> BackendSpec:
    """Import and return one backend.

    Raises:
        ValueError: If no backend of that name is installed; the message lists those that are.
    """
    points = {point.name: point for point in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in points:
        raise ValueError(
            f"backend {name!r} is not installed; installed: {', '.join(sorted(points)) or 'none'}"
        )
    spec = points[name].load()
    assert isinstance(spec, BackendSpec), f"{name} registers {type(spec)}"
    return spec
