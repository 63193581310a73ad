"""One competitor: its command line, and the process that it trains in.

    python -m gpt_compare.competitor TEXTS KEEP NAME FLAGS...

trains as ``NAME-train FLAGS...`` would, and then continues so many texts at once, several numbers with commas
or ``-`` for none; KEEP is ``keep`` for checkpoints, which ``-`` does not write; NAME is an installed backend,
``plain`` or ``transformers``.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from gpt_data.flags import refuse_unknown
from gpt_data.terminal import guarded
from gpt_trainer.errors import InputError
from gpt_trainer.gpt2.spec import GPT2Actions, gpt2_spec
from gpt_trainer.registry import BackendSpec, find_backend, installed_backends
from gpt_trainer.run.task import TaskSpec
from gpt_trainer.run.training import run_command

from gpt_compare.observing import Observer

PLAIN = "plain"
BASELINES = {PLAIN: "gpt_compare.baseline", "transformers": "gpt_compare.huggingface"}
"""Modules of those that no trainer but ours sees; they bring torch."""
NONE, KEEP = "-", "keep"
FIRST_SHOWN = ("gpt-triton", "gpt-torchfunc", "gpt-jax")
OURS = ("--config", "--out", "--preset", "--resume", "--eval-only")
"""Flags that decide what all have in common, or where it goes."""


class Competitor(NamedTuple):
    """One row of the table.

    Attributes:
        label: The text that the user gave.
        name: The backend.
        flags: Flags of this competitor alone, which have the last word.
        place: Its number, from 1.
        generate: Texts that it continues at once when it is trained.
    """

    label: str
    name: str
    flags: tuple[str, ...]
    place: int
    generate: tuple[int, ...] = ()

    @property
    def folder(self) -> str:
        """Name of its run's folder: number and label."""
        return f"{self.place}-{re.sub(r'[^A-Za-z0-9.]+', '-', self.label).strip('-')[:60]}"

    def refuse_typos(self, settings: Sequence[str]) -> None:
        """Refuse before anyone trains a name, or a flag's, that is not there.

        Args:
            settings: Names of the flags that every trainer has.

        Raises:
            InputError: It proposes what may be meant; a name that is like none may belong to a backend that
                is not installed here, and fails alone.
        """
        installed = installed_backends()
        known = {*installed, *BASELINES, *FIRST_SHOWN}
        meant = [] if self.name in known else get_close_matches(self.name, sorted(known), n=1)
        try:
            if meant:
                raise InputError(f"unknown name {self.name}: perhaps you meant {meant[0]}")
            if self.flags and self.name in installed:
                kinds = (find_spec(self.name).options, GPT2Actions)
                refuse_unknown(
                    self.flags, [*settings, *(item.name for kind in kinds for item in fields(kind))]
                )
        except InputError as error:
            raise InputError(f"--runs {self.label!r}: {error}") from None

    def command(self, plan: Path, out: Path, keep: bool) -> list[str]:
        """The arguments of its process, which keeps checkpoints or writes none."""
        given = [f"--config={plan}", f"--out={out}", *self.flags]
        texts = ",".join(map(str, self.generate)) or NONE
        kept = KEEP if keep else NONE
        return [sys.executable, "-m", "gpt_compare.competitor", texts, kept, self.name, *given]


def read_competitors(texts: Sequence[str]) -> list[Competitor]:
    """Competitors from what the user wrote: a backend's name, and flags behind it.

    Raises:
        InputError: If there is none, one comes twice, cannot be split, or has a flag that belongs to all.
    """
    if not texts:
        raise InputError("--runs names no competitor")
    found: list[Competitor] = []
    for text in texts:
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise InputError(f"--runs {text!r} is not a command line: {error}") from None
        if not words:
            raise InputError(f"--runs {text!r} names no competitor")
        name, *flags = words
        for flag in flags:
            if flag.split("=")[0].replace("_", "-") in OURS:
                raise InputError(f"--runs {text!r}: {flag} is not for one competitor")
        if any(text == other.label for other in found):
            raise InputError(f"--runs {text!r} comes twice")
        found.append(Competitor(text, name, tuple(flags), len(found) + 1))
    return found


def default_competitors() -> tuple[str, ...]:
    """The backends that are installed, ours first, and the plain baseline last."""
    installed = installed_backends()
    known = [name for name in FIRST_SHOWN if name in installed]
    return (*known, *(name for name in installed if name not in known), PLAIN)


def find_spec(name: str) -> BackendSpec:
    """A backend, or a baseline.

    Raises:
        InputError: If it is not installed.
    """
    if name in BASELINES:
        spec: BackendSpec = import_module(BASELINES[name]).SPEC
        return spec
    try:
        return find_backend(name)
    except ValueError as error:
        raise InputError(f"{error}, {', '.join(BASELINES)}") from None


def task_spec(backend: BackendSpec, keep: bool) -> TaskSpec:
    """What a trainer's command does; without ``keep`` no checkpoint is written, and none needs room."""
    spec = gpt2_spec(backend)
    return spec if keep else replace(spec, open=partial(_opened, spec), room=lambda _: 0)


@contextmanager
def _opened(spec: TaskSpec, *given: Any) -> Iterator[Any]:
    """A task whose weights go with its process: there is nothing to show of them or to go on with."""
    with spec.open(*given) as task:
        conclude = task.conclude
        setattr(task, "save", lambda *_: None)  # noqa: B010 - to mypy a method is no attribute
        setattr(task, "conclude", lambda *given: None if conclude(*given) is None else "")  # noqa: B010
        yield task


def main(argv: Sequence[str]) -> int:
    """Train; the exit status is the trainer's."""
    texts, kept, name, *flags = argv
    generate = [] if texts == NONE else [int(rows) for rows in texts.split(",")]
    folders = [Path(flag.removeprefix("--out=")) for flag in flags if flag.startswith("--out=")]
    run = folders[-1] if folders else None
    observer = Observer(name, generate)

    def train(backend: BackendSpec) -> int:
        return guarded(f"{name}-train", lambda: run_command(task_spec(backend, kept == KEEP), flags))

    return guarded("gpt-compare", lambda: observer.run(find_spec(name), train, run))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
