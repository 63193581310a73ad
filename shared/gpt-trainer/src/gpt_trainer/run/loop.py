"""The training loop: steps, and between them measurements, checkpoints and samples of any task.

On a GPU the numbers of a step are read when the next one is under way, so that the device never waits
for the host; before anything that looks at the weights all of them are read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from gpt_trainer.errors import NonFiniteError
from gpt_trainer.evidence import refuse_non_finite
from gpt_trainer.ranks.peers import Peers
from gpt_trainer.report.profiling import ProfileWindow
from gpt_trainer.report.reporter import Reporter, Silence
from gpt_trainer.report.stopwatch import Stopwatch
from gpt_trainer.run.pace import FirstStep, Pace
from gpt_trainer.run.record import RunState
from gpt_trainer.run.task import Batch, Measured, Pending, Task


class Launched(NamedTuple):
    """A step whose numbers are still on the device, what its launch took, whether the process's first."""

    step: int
    lr: float
    batch: Batch
    pending: Pending
    seconds: float
    first: bool


class Loop:
    """Takes a run from where it stands to its end.

    Args:
        state: Where it stands; changed as it goes on.
        saved_step: Step of the checkpoint that it began from; -1 if none.

    Attributes:
        end: The last step, as far as it can be told.
    """

    def __init__(
        self,
        task: Task,
        run: Path,
        pace: Pace,
        record: dict[str, Any],
        state: RunState,
        saved_step: int,
        reporter: Reporter | Silence,
        peers: Peers,
    ) -> None:
        self.task, self.folder, self.pace, self.record = task, run, pace, record
        self.state, self.reporter, self.peers = state, reporter, peers
        self._saved_step = saved_step
        self._launched: Launched | None = None
        self._watch = Stopwatch()
        self._first = FirstStep()
        self.end = self._reckon()

    @property
    def writes(self) -> bool:
        """Whether this process is the one that writes."""
        return self.peers.place.rank == 0

    def run(self) -> bool:
        """Train to the last step; False if asked to stop before.

        Raises:
            NonFiniteError: If the loss or the gradient is not finite; nothing is saved then.
            WriteError: If something cannot be written.
            InputError: If the data is damaged.
        """
        state = self.state
        if not self._measure():
            return self._stop()
        profile = ProfileWindow(
            self.task, self.folder if self.writes else None, self.pace.profile, state.step
        )
        with self.task.batches(state.step) as batches, profile:
            while state.step < self.end:
                batch = next(batches)
                told = self.peers.gather([self.peers.stop(), self.task.weight(batch)], f"step {state.step}")
                if any(stops for stops, _ in told):
                    return self._stop()
                if profile.begins(state.step):
                    self._settle()
                    profile.begin()
                    self._watch.restart()
                self._take_step(batch, sum(weight for _, weight in told))
                self.end = self._reckon()
                if profile.ends(state.step) or self._pause_due():
                    self._settle()
                    if profile.ends(state.step):
                        profile.end(self.reporter.say)
                    if not self._pause():
                        return self._stop()
        return not self.peers.agreed() or state.step == self._saved_step

    def _reckon(self) -> int:
        """The last step, told anew after each: here alone it is decided whether the run is over."""
        state, length = self.state, self.pace.length
        if length.minutes is not None:
            # clocks differ
            state.seconds = self.peers.first(state.seconds, "the time used")
        return length.end(state.step, state.tokens, state.seconds)

    def _take_step(self, batch: Batch, weight: int) -> None:
        """Launch a step, then look after the one before it."""
        step = self.state.step
        first = self._first.begins()
        self._doing("first step" if first else "training")
        if first and not self.task.overlap:
            self._first.foretell(self.task.tokens(batch), self.reporter.say)
        lr = self.pace.rate(step, self.end)
        pending = self.task.launch(batch, lr, step, weight)
        seconds = self._watch.lap()
        self._settle()
        self._launched = Launched(step, lr, batch, pending, seconds, first)
        self.state.step = step + 1
        self.state.tokens += self.task.tokens(batch)
        if not self.task.overlap:
            self._settle()

    def _doing(self, what: str) -> None:
        self.reporter.doing(what, self.state.step, self.end)

    def _settle(self) -> None:
        """Read, check and write the numbers of the last step launched."""
        if self._launched is None:
            return
        (step, lr, batch, pending, seconds, first), self._launched = self._launched, None
        numbers = pending.fetch()
        seconds += self._watch.lap()
        if not all(map(math.isfinite, numbers)):
            weights = self.task.weights()
            raise refuse_non_finite(self.folder if self.writes else None, step, batch, numbers, weights)
        self.task.settled(step, numbers)
        self.state.seconds += 0.0 if first else seconds
        line = {"step": step + 1, "lr": lr, **self.task.line(step, batch, numbers, seconds)}
        self.reporter.step(line, self.end)

    def _due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; the end always counts."""
        step = self.state.step
        return every > 0 and (step % every == 0 or step == self.end)

    def _save_due(self) -> bool:
        return self.state.step == self.end or (self.state.step > 0 and self._due(self.pace.save_every))

    def _pause_due(self) -> bool:
        task = self.task
        every = [task.show_every, *(other.every for other in task.measurements)]
        every += [] if task.validation is None else [task.validation.every]
        return self._save_due() or any(map(self._due, every))

    def _pause(self) -> bool:
        """Measure, save and show as it is due; False if asked to stop meanwhile."""
        if not self._measure():
            return False
        if self._save_due():
            self._save()
        if self._due(self.task.show_every) and not self.peers.agreed():
            self._doing("sampling")
            sample = self.task.show(self.state.step)
            if sample is not None:
                self.reporter.say(f"step {self.state.step}: sample\n{sample}\n")
        self._watch.restart()
        return True

    def _measure(self) -> bool:
        """Measure what is due and was not measured at this step; False if asked to stop meanwhile."""
        return self._validate() and self._measure_besides()

    def _validate(self) -> bool:
        state, validation = self.state, self.task.validation
        if validation is None or not self._due(validation.every) or state.evaluated == state.step:
            return not self.peers.agreed()
        self._doing("evaluating")
        self._watch.restart()
        found = validation.measure(state.step)
        if found is None:
            return False
        self._first.measured(self._watch.lap(), int(found.line.get("val_targets", 0)))
        if found.loss is None or not math.isfinite(found.loss):
            raise NonFiniteError(
                f"step {state.step}: validation loss {found.loss}; what was saved is as it was"
            )
        state.evaluated = state.step
        if self._save_due() and (state.best_loss is None or found.loss < state.best_loss):
            state.best_loss, state.best_step = found.loss, state.step
        self._tell(found)
        return True

    def _measure_besides(self) -> bool:
        state = self.state
        due = [other for other in self.task.measurements if self._due(other.every)]
        if not due or state.measured == state.step:
            return True
        for other in due:
            self._doing("evaluating")
            found = other.measure(state.step)
            if found is None:
                return False
            self._tell(found)
        state.measured = state.step
        return True

    def _tell(self, found: Measured) -> None:
        self.reporter.measured(self.state.step, found)
        self._watch.restart()

    def _save(self) -> None:
        state = self.state
        if state.step == self._saved_step:
            return
        self._doing("saving")
        self.reporter.flush()
        trainer = {
            **self.record,
            "state": {**self.task.state(), **state.as_json(counted=self.pace.length.last is None)},
        }
        try:
            folder = self.task.save(self.folder, state.step, trainer)
        except ValueError as error:
            raise NonFiniteError(f"step {state.step} is not saved: {error}") from None
        self._saved_step = state.step
        if self.writes:
            self.task.tidy(self.folder, state.best_step)
        if folder is not None:
            self.reporter.say(f"step {state.step}: saved {folder}")

    def _stop(self) -> bool:
        """Save what was reached."""
        self._settle()
        self._save()
        return False
