"""How a run begins: fresh, as the continuation of another, or (see ``gpt2``) from a model. Asked once.

Whatever differs between the three stands here: defaults, what may be changed, the folder, the weights,
what is compared with what was.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt_data.flags import flag
from gpt_data.store.lock import LOCK_NAME, FolderLock
from gpt_data.terminal import warn

from gpt_trainer.checkpoint import check_writable, find_steps, step_or_newest
from gpt_trainer.checkpoint.discovery import is_step
from gpt_trainer.errors import InputError
from gpt_trainer.origin import run_of_step
from gpt_trainer.run.folder import (
    create_folder,
    refuse_existing,
    set_aside_later,
    store_record,
    stored_record,
)
from gpt_trainer.run.record import Record, RunState, differences, read_record, read_state
from gpt_trainer.run.task import Request, TaskSpec
from gpt_trainer.settings.values import changed, field_names, flat, overlay_section

RATE_JUMP = 1.01


class Fresh:
    """A run from the seed.

    Attributes:
        state: Where the run stands.
        saved: What was loaded to begin with; None for a seed.
        saved_step: Step of the checkpoint that it begins from; -1 if none.
        pin: What the data is to be read by again.
        init_from: Where the first weights come from, if not from the seed.
        where: Names what was loaded, for messages.
    """

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec
        # nothing is measured, besides the loss, of weights that nobody trained: it would only tell of chance
        self.state = RunState(measured=0)
        self.saved: Any = None
        self.saved_step = -1
        self.pin: Mapping[str, str] = {}
        self.init_from: str | None = None
        self.where = ""

    def base(self, early: Any, file: Mapping[str, Any], *, gpu: bool) -> tuple[str, Any]:
        """The preset's name, and the settings without file and flags.

        Raises:
            InputError: If there is no such preset.
        """
        given = {**file, **{name: value for name, value in early._asdict().items() if value is not None}}
        named = given["preset"] if "preset" in given else self.spec.fitting(given, gpu)
        if named not in self.spec.presets:
            raise InputError(f"unknown preset {named!r}; choose one of {', '.join(self.spec.presets)}")
        return named, self.spec.suit(self.spec.presets[named], given)

    def options(self) -> Mapping[str, Any]:
        """The flags that the configuration does not have, with their defaults."""
        return {name: kind() for name, kind in self.spec.options.items()}

    def check(self, config: Any, base: Any) -> None:
        """Refuse settings that do not fit what is begun from.

        Raises:
            InputError: Naming the flag.
        """

    @contextmanager
    def folder(self, request: Request) -> Iterator[Path]:
        """The run's folder, locked; a new one is removed again if nothing comes of it.

        Raises:
            InputError: If the folder holds a run.
            WriteError: If it cannot be written, is in use, or has too little space.
        """
        run = create_folder(request.actions.out, self.spec.prefix + request.preset)
        with FolderLock(run):
            refuse_existing(run)
            try:
                check_writable(run, self.spec.room(request.config))
                yield run
            finally:
                _remove_if_empty(run)

    def check_data(self, record: Record) -> None:
        """Refuse other data than the run was trained on.

        Raises:
            InputError: If it is other data.
        """

    def settle(self, run: Path, record: Record) -> dict[str, Any]:
        """Write the run's record into its folder, once it is compared with an earlier one; its JSON values.

        Raises:
            InputError: If the data is not what the run was trained on.
            WriteError: If it cannot be written.
        """
        values = self.compared(record).as_json()
        store_record(run, values)
        return values

    def compared(self, record: Record) -> Record:
        """The record of this process and of those before."""
        return record


class Continued(Fresh):
    """A run that goes on.

    Attributes:
        run: Its folder.
        record: What it wrote down about itself.

    Args:
        path: The run's folder, to go on from its newest whole step, or one of its steps.
    """

    def __init__(self, spec: TaskSpec, path: Path) -> None:
        super().__init__(spec)
        self._path, self.run = path, existing_run(path)
        self.where = str(self.run)
        begun = None if is_step(path) or find_steps(self.run) else stored_record(self.run)
        if begun is not None:
            self.record = read_record(begun, spec, str(self.run / "run.json"))
        else:
            self._load()
        self.pin, self.init_from = self.record.pin, self.record.init_from

    def _load(self) -> None:
        self.saved = step_or_newest(self._path, self.spec.load, warn)
        step, trainer = self.saved.step, self.saved.trainer
        where = f"trainer.json of step {step} in {self.run}"
        self.record = read_record(trainer, self.spec, where)
        self.state = read_state(trainer, step, self.spec.check_state, where)
        self.saved_step = step

    def base(self, early: Any, file: Mapping[str, Any], *, gpu: bool) -> tuple[str, Any]:
        """What the run has recorded."""
        del early, gpu
        if "preset" in file:
            raise InputError("preset in --config does not go with --resume: the run has its own")
        return self.record.preset, self.record.config

    def options(self) -> Mapping[str, Any]:
        """The flags as the run has recorded them."""
        record, known = self.record, super().options()
        recorded = {**record.evaluations, "backend": record.options.get(self.spec.name, {})}
        where = f"the record of {self.run}"
        return {name: overlay_section(given, recorded.get(name, {}), where) for name, given in known.items()}

    def check(self, config: Any, base: Any) -> None:
        """Refuse what would make it another run."""
        before, now, spec = flat(base), flat(config), self.spec
        allowed = spec.harmless | spec.last_bits | field_names(type(config.reports))
        for name in changed(base, config):
            if name not in allowed:
                raise InputError(
                    f"{flag(name)} {now[name]} cannot change on resume: {self.run} has {before[name]}"
                    + self._instead("to start a new run from its weights")
                )
        last = config.schedule.last
        if last is not None and last < self.state.step:
            raise InputError(f"--steps {last}: {self.run} has taken {self.state.step} already")

    @contextmanager
    def folder(self, request: Request) -> Iterator[Path]:
        """The folder, locked already."""
        del request
        yield self.run

    def compared(self, record: Record) -> Record:
        """Refuse other data, say what changes, set later steps aside; the record of both processes."""
        before = self.record
        self.check_data(record)
        self._warn_of_changes(record)
        self._warn_of_rate(record.config)
        if self.saved is not None and is_step(self._path):
            later = set_aside_later(self.run, self.state.step)
            if later:
                warn(f"steps {', '.join(map(str, later))} are set aside as superseded-step-...")
        options = {**before.options, **record.options}
        return replace(record, options=options, evaluations={**before.evaluations, **record.evaluations})

    def check_data(self, record: Record) -> None:
        """Refuse other data than the run was trained on.

        Raises:
            InputError: If it is other data.
        """
        found = differences(self.record.data, record.data) if self.record.data else []
        if found:
            asked = vars(record.config.data)
            named = [name for name in ("data", "tokenizer") if asked.get(name) is not None]
            given = " ".join(f"{flag(name)} {asked[name]}" for name in named)
            raise InputError(
                f"{given} is other data than {self.run} was trained on ({'; '.join(found)})"
                + self._instead("to go on with other data")
            )

    def _instead(self, wish: str) -> str:
        """What serves the wish that resuming does not, if this command has it."""
        return "" if self.spec.from_model is None else f"; {wish} use --init-from"

    def _warn_of_changes(self, record: Record) -> None:
        before = self.record
        found = differences(before.made_by, record.made_by) if before.made_by else []
        found += [name for name in changed(before.config, record.config) if name in self.spec.last_bits]
        if found:
            warn(f"the run may differ in its last bits from an uninterrupted one: {'; '.join(found)}")

    def _warn_of_rate(self, config: Any) -> None:
        """Say so if another length than before moves the learning rate that the run had come to."""
        before, state, step = self.record.config, self.state, self.state.step
        ends = [each.schedule.end(step, state.tokens, state.seconds) for each in (before, config)]
        old, new = (self.spec.rate(*each) for each in ((before, step, ends[0]), (config, step, ends[1])))
        if step > 0 and max(old, new) > RATE_JUMP * min(old, new):
            warn(
                f"the learning rate goes on at {new:.2e}, not at the {old:.2e} that it has come to, as "
                f"{config.schedule.flag()} stretches its course; to go on at {old:.2e} add"
                f"{self.spec.stay(before, ends[0])}"
            )


def existing_run(path: Path) -> Path:
    """The run of a path that is to be gone on with.

    Raises:
        InputError: If there is none.
    """
    if not path.is_dir():
        raise InputError(f"--resume {path}: there is no such folder")
    return run_of_step(path)


def _remove_if_empty(run: Path) -> None:
    with contextlib.suppress(OSError):
        if [entry.name for entry in run.iterdir()] == [LOCK_NAME]:
            (run / LOCK_NAME).unlink()
            run.rmdir()
