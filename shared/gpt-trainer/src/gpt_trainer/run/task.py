"""What a run trains, as the trainer sees it: it knows neither tokens nor sentences.

A ``TaskSpec`` says what can be asked of a training command; what it opens is a ``Task``, which a ``Loop``
takes from step to step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from gpt_trainer.backend import Profile
from gpt_trainer.ranks.peers import Alone, Peers
from gpt_trainer.ranks.place import Place
from gpt_trainer.ranks.watch import PATIENCE_SECONDS

Batch = Any
"""A named tuple of arrays; only the task knows which."""


@runtime_checkable
class Numbers(Protocol):
    """What a step reports, a named tuple: these, and what else the task has; all finite, or the run ends."""

    @property
    def loss(self) -> float:
        """The mean loss."""
        ...

    @property
    def grad_norm(self) -> float:
        """Global norm of the gradient, before clipping."""
        ...

    @property
    def updated(self) -> bool:
        """Whether the weights moved."""
        ...

    def __iter__(self) -> Iterator[Any]: ...


@runtime_checkable
class Pending(Protocol):
    """A step that is launched."""

    def fetch(self) -> Numbers:
        """Wait for the step and return its numbers."""
        ...


class Measured(NamedTuple):
    """What a measurement found.

    Attributes:
        line: Figures by name, for ``metrics.jsonl``.
        said: The same in words.
        loss: The loss by which the best step is told; None for other measurements.
    """

    line: Mapping[str, float | int]
    said: str
    loss: float | None = None


class Measurement(NamedTuple):
    """Something that is measured at a run's pauses.

    Attributes:
        every: Steps between; 0 for never.
        measure: Given the steps taken; None if asked to stop meanwhile.
    """

    every: int
    measure: Callable[[int], Measured | None]


@runtime_checkable
class Task(Protocol):
    """What is trained: its batches, its weights and what becomes of them.

    In a run of several processes all call the same methods in the same order, and get the same numbers.

    Attributes:
        overlap: Read a step's numbers only when the next is launched; without use on a CPU.
        validation: Tells the best step; None if there is nothing to validate on.
        measurements: What is measured besides.
        show_every: Steps between samples.
        data: What identifies the data, as JSON values.
        pin: What a later process needs to read the same data.
        made_by: Device and versions, which decide the last bits.
    """

    overlap: bool
    validation: Measurement | None
    measurements: Sequence[Measurement]
    show_every: int
    data: Mapping[str, Any]
    pin: Mapping[str, str]
    made_by: Mapping[str, Any]

    def heading(self) -> str:
        """Sizes and length of the run, and what it runs on."""
        ...

    def notes(self) -> Sequence[str]:
        """What the user should know before the first step, one line each."""
        ...

    def batches(self, step: int) -> AbstractContextManager[Iterator[Batch]]:
        """The batches from a step on, one for each."""
        ...

    def tokens(self, batch: Batch) -> int:
        """How many tokens a step over a batch trains on, those of all processes together."""
        ...

    def weight(self, batch: Batch) -> int:
        """What a batch counts in the mean over all processes' batches of a step: its targets."""
        ...

    def launch(self, batch: Batch, lr: float, step: int, weight: int) -> Pending:
        """Launch a step and do not wait for it.

        Args:
            weight: Sum over all processes.
        """
        ...

    def settled(self, step: int, numbers: Any) -> None:
        """Take in the numbers of a step; they come in order."""
        ...

    def line(self, step: int, batch: Batch, numbers: Any, seconds: float) -> dict[str, Any]:
        """A step's figures besides its learning rate: ``loss``, ``tokens_per_second`` and more."""
        ...

    def state(self) -> dict[str, Any]:
        """What it must find again when the run goes on, as JSON values."""
        ...

    def weights(self) -> Mapping[str, np.ndarray]:
        """The weights, as evidence of a step that failed."""
        ...

    def save(self, run: Path, step: int, trainer: dict[str, Any]) -> Path | None:
        """Save a step, whole or not at all; the folder, None on other ranks than 0, which help only.

        Raises:
            ValueError: If it is not one that could be loaded again.
            WriteError: If it cannot be written.
        """
        ...

    def tidy(self, run: Path, best_step: int | None) -> None:
        """Delete the checkpoints that are not to be kept."""
        ...

    def show(self, step: int) -> str | None:
        """A sample of what it has learnt; None if there is none."""
        ...

    def conclude(self, run: Path, say: Callable[[str], None]) -> str | None:
        """Do what follows the last step.

        Returns:
            The command that shows what was learnt; nothing if none is kept, None if asked to stop.
        """
        ...

    def profile(self, folder: Path) -> AbstractContextManager[Profile]:
        """Record with the framework's own profiler."""
        ...

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        ...


@dataclass(frozen=True)
class Actions:
    """What to do.

    Attributes:
        preset: The settings to begin with, by name (if not given, those that suit the machine or the data).
        config: TOML file with any of these settings.
        out: Folder of the new run (runs/PRESET-N if not given).
        resume: Go on with a run, or from one of its steps.
        profile: Record this many steps with the framework's profiler.
        devices: Train on this many devices of this host.
        patience: Seconds in which each of several processes must come on, or the run ends.
    """

    preset: str | None = None
    config: Path | None = None
    out: Path | None = None
    resume: Path | None = None
    profile: int = 0
    devices: int = 1
    patience: float = PATIENCE_SECONDS

    def __post_init__(self) -> None:
        if self.profile < 0:
            raise ValueError(f"profile={self.profile} is not in [0, infinity)")
        if not self.patience > 0.0:
            raise ValueError(f"patience={self.patience} is not positive")


@dataclass(frozen=True)
class Request:
    """What the user asked for, complete.

    Attributes:
        actions: What to do.
        config: The settings, with open choices made.
        options: The flags of the backend, and of each package that brings an evaluation, by name.
        preset: The preset's name.
        gpu: Whether it runs on a GPU.
    """

    actions: Any
    config: Any
    options: Mapping[str, Any]
    preset: str
    gpu: bool = False


@dataclass(frozen=True)
class TaskSpec:
    """A training command: what can be asked of it, and what it opens.

    Attributes:
        name: ``gpt-jax`` of the command ``gpt-jax-train``.
        title: What it trains.
        format: Tells its records from those of other tasks.
        actions: A subclass of ``Actions``.
        presets: Configurations by name: dataclasses of sections, with ``schedule`` (a ``LengthSection``),
            ``runtime`` and ``reports`` among them.
        fitting: The preset's name for the flags and the file's keys that decide, and for a GPU or none.
        suit: The preset for the flags and keys that decide.
        has_gpu: Whether the framework can use a GPU here; it may be imported for the answer.
        room: Bytes that a run's checkpoints need.
        open: Data and model, from a request, the way in which the run begins, and the processes of the run.
        load: A step's folder: ``step``, ``parameters``, ``trainer`` and what else ``open`` needs.
        rate: The learning rate of a configuration's step, given it and what is known of the last.
        stay: The flags with which a run that ended at a step goes on at its last learning rate, each after a
            blank.
        from_model: A run from a model's folder, where the task knows that.
        options: Flags that the configuration does not have: dataclasses by name, each field with a default.
        harmless: Settings that may change on resume, besides those that only report.
        last_bits: Settings that may change on resume, but not without other roundings.
        later: Settings that its first records do not have, and that mean there what they do when not given.
        gone: Settings that its earlier records have, and that decided nothing.
        suffix: Stands behind the name in the command's.
        prefix: Stands before the preset in the names of unnamed runs.
        check_state: Faults of what ``Task.state`` gave, as it was read again.
        join: As ``BackendSpec.join``; a task that knows no others trains alone.
        launch: As ``BackendSpec.launch``.
        divide: Refuses a configuration that so many processes cannot share.
    """

    name: str
    title: str
    format: int | str
    actions: type[Actions]
    presets: Mapping[str, Any]
    fitting: Callable[[Mapping[str, Any], bool], str]
    has_gpu: Callable[[], bool]
    room: Callable[[Any], int]
    open: Callable[[Request, Any, Peers], AbstractContextManager[Task]]
    load: Callable[[Path], Any]
    rate: Callable[[Any, int, int], float]
    suit: Callable[[Any, Mapping[str, Any]], Any] = lambda base, _: base
    stay: Callable[[Any, int], str] = lambda *_: ""
    from_model: Callable[[TaskSpec, Path], Any] | None = None
    options: Mapping[str, type[Any]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    last_bits: frozenset[str] = frozenset()
    later: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()
    suffix: str = "-train"
    prefix: str = ""
    check_state: Callable[[Mapping[str, Any], int], list[str]] = lambda *_: []
    join: Callable[[int], Peers] = Alone
    launch: Callable[[int, Sequence[str]], int] | None = None
    divide: Callable[[Any, Place], object] = lambda *_: None

    @property
    def example(self) -> Any:
        """One of its configurations: what settings there are."""
        return next(iter(self.presets.values()))
