"""The training loop: steps, and between them evaluations, checkpoints and samples.

On a GPU the metrics of a step are read when the next one is under way, so that the device never waits
for the host; before anything that looks at the weights all of them are read.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from gpt_data.batch import Batch

from gpt_trainer.backend import Pending
from gpt_trainer.checkpoint import CheckpointState, prune, save_checkpoint
from gpt_trainer.config import rate_at
from gpt_trainer.display import Report
from gpt_trainer.errors import NonFiniteError
from gpt_trainer.evaluation import evaluate
from gpt_trainer.evidence import refuse_non_finite
from gpt_trainer.flops import flops_per_token, peak_flops
from gpt_trainer.generation import sample_text
from gpt_trainer.parts import RunParts
from gpt_trainer.profiling import ProfileWindow
from gpt_trainer.record import RunState
from gpt_trainer.sampling import SamplingConfig
from gpt_trainer.stopwatch import Stopwatch

SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 0.7, 50


class Launched(NamedTuple):
    """A step whose metrics are still on the device, and what its launch took."""

    step: int
    lr: float
    batch: Batch
    pending: Pending
    seconds: float


class Loop:
    """Takes a run from where it stands to its end.

    Args:
        parts: What it works with.
        state: Where it stands; changed as it goes on.
        saved_step: Step of the checkpoint that it began from; -1 if none.
    """

    def __init__(self, parts: RunParts, state: RunState, saved_step: int = -1) -> None:
        self.parts = parts
        self.state = state
        self._saved_step = saved_step
        self._launched: Launched | None = None
        self._val_loss: float | None = None
        self._watch = Stopwatch()
        config = parts.config
        model = parts.backend.config
        peak = peak_flops(parts.backend.device_name(), config.runtime.precision or "float32")
        self._mfu_per_speed = None if peak is None else flops_per_token(model, config.model.context) / peak
        self._tokenizer_json = None if parts.tokenizer is None else parts.tokenizer.to_json().encode()

    def run(self) -> bool:
        """Train to the last step; False if asked to stop before.

        Raises:
            NonFiniteError: If the loss or the gradient is not finite; nothing is saved then.
            WriteError: If something cannot be written.
            InputError: If the data is damaged.
        """
        parts, state = self.parts, self.state
        if not (self._evaluate_if_due() and self._measure_if_due()):
            return self._stop()
        profile = ProfileWindow(parts.backend, parts.run, parts.profile, state.step)
        with parts.train.prefetch(state.step) as batches, profile:
            while state.step < parts.config.schedule.steps:
                if parts.stop():
                    return self._stop()
                profile.before(state.step)
                self._take_step(next(batches))
                if profile.after(state.step, parts.display.say) or self._pause_due():
                    self._settle()
                    if not self._pause():
                        return self._stop()
        return not parts.stop() or state.step == self._saved_step

    def _take_step(self, batch: Batch) -> None:
        config, step = self.parts.config, self.state.step
        size = config.batch.micro_batch
        micro_batches = [batch.rows(first, first + size) for first in range(0, config.rows, size)]
        lr = rate_at(config, step)
        bound = self.state.spikes.bound(step)
        pending = self.parts.backend.train_step(micro_batches, lr, step, skip_above=bound)
        seconds = self._watch.lap()
        self._settle()
        self._launched = Launched(step, lr, batch, pending, seconds)
        self.state.step = step + 1
        if not self.parts.overlap:
            self._settle()

    def _settle(self) -> None:
        """Read, check and write the metrics of the last step launched."""
        if self._launched is None:
            return
        launched, self._launched = self._launched, None
        metrics = launched.pending.fetch()
        seconds = launched.seconds + self._watch.lap()
        if not (math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm)):
            weights = self.parts.backend.export()
            raise refuse_non_finite(self.parts.run, launched.step, launched.batch, metrics, weights)
        self.state.spikes.observe(launched.step, metrics.grad_norm)
        line = {
            "step": launched.step + 1,
            "tokens": (launched.step + 1) * self.parts.config.batch.tokens_per_step,
            "loss": metrics.loss,
            "lr": launched.lr,
            "grad_norm": metrics.grad_norm,
            "updated": metrics.updated,
            **self._timing(seconds),
        }
        self._write(line)
        self._report(line)

    def _timing(self, seconds: float) -> dict[str, float | int]:
        speed = self.parts.config.batch.tokens_per_step / max(seconds, 1e-9)
        timing: dict[str, float | int] = {"seconds": seconds, "tokens_per_second": speed}
        if self._mfu_per_speed is not None:
            timing["mfu"] = speed * self._mfu_per_speed
        return timing | {"peak_memory_bytes": self.parts.backend.peak_memory_bytes()}

    def _write(self, line: dict[str, Any]) -> None:
        self.parts.metrics.write(line)
        for sink in self.parts.sinks:
            sink.write(line)

    def _report(self, line: dict[str, Any]) -> None:
        if not line["updated"]:
            self.parts.display.say(f"step {line['step']}: left out, gradient norm {line['grad_norm']:.2f}")
        self.parts.display.report(
            Report(
                line["step"],
                self.parts.config.schedule.steps,
                line["loss"],
                self._val_loss,
                line["lr"],
                line["grad_norm"],
                line["tokens_per_second"],
                line.get("mfu"),
                line["peak_memory_bytes"],
            )
        )

    def _due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; the end always counts."""
        step = self.state.step
        return every > 0 and (step % every == 0 or step == self.parts.config.schedule.steps)

    def _save_due(self) -> bool:
        step, every = self.state.step, self.parts.config.reports.save_every
        return step == self.parts.config.schedule.steps or (every > 0 and step > 0 and step % every == 0)

    def _pause_due(self) -> bool:
        reports = self.parts.config.reports
        every = [reports.eval_every, reports.sample_every, *(extra.every for extra in self.parts.evaluations)]
        return self._save_due() or any(map(self._due, every))

    def _pause(self) -> bool:
        """Evaluate, save and sample as it is due; False if asked to stop meanwhile."""
        if not (self._evaluate_if_due() and self._measure_if_due()):
            return False
        if self._save_due():
            self._save()
        if self._due(self.parts.config.reports.sample_every) and not self.parts.stop():
            self._sample()
        self._watch.restart()
        return True

    def _evaluate_if_due(self) -> bool:
        """Evaluate unless that was done at this step already; False if asked to stop meanwhile."""
        parts, state = self.parts, self.state
        reports = parts.config.reports
        if parts.val is None or not self._due(reports.eval_every) or state.evaluated == state.step:
            return not parts.stop()
        found = evaluate(parts.backend, parts.val, reports.eval_rows, parts.stop)
        if found is None:
            return False
        if not math.isfinite(found.loss):
            raise NonFiniteError(
                f"step {state.step}: validation loss {found.loss}; the last checkpoint is as it was"
            )
        self._val_loss = found.loss
        state.evaluated = state.step
        if self._save_due() and (state.best_loss is None or found.loss < state.best_loss):
            state.best_loss, state.best_step = found.loss, state.step
        self._write({"step": state.step, "val_loss": found.loss, "val_targets": found.targets})
        parts.display.say(f"step {state.step}: {found}")
        self._watch.restart()
        return True

    def _measure_if_due(self) -> bool:
        """Make the extra evaluations unless that was done at this step; False if asked to stop meanwhile."""
        parts, state = self.parts, self.state
        due = [extra for extra in parts.evaluations if self._due(extra.every)]
        if not due or state.measured == state.step:
            return True
        for extra in due:
            found = extra.measure(parts.backend, parts.stop)
            if found is None:
                return False
            self._write({"step": state.step, **found})
            # the file has the errors of the figures too; a line has room for the figures
            figures = {name: value for name, value in found.items() if not name.endswith("_stderr")}
            shown = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            parts.display.say(f"step {state.step}: {shown}")
        state.measured = state.step
        self._watch.restart()
        return True

    def _save(self) -> None:
        parts, state = self.parts, self.state
        if state.step == self._saved_step:
            return
        parts.metrics.flush()
        position = {"data_tokens": state.step * parts.config.batch.tokens_per_step}
        trainer = {**parts.record.as_json(), **position, "state": state.as_json()}
        backend = parts.backend
        checkpoint = CheckpointState(
            state.step,
            backend.config,
            backend.export(),
            backend.export_moments(),
            trainer,
            self._tokenizer_json,
        )
        try:
            folder = save_checkpoint(parts.run, checkpoint)
        except ValueError as error:
            raise NonFiniteError(f"step {state.step} is not saved: {error}") from None
        self._saved_step = state.step
        prune(parts.run, parts.config.reports.keep_last, state.best_step)
        parts.display.say(f"step {state.step}: saved {folder}")

    def _sample(self) -> None:
        parts, reports = self.parts, self.parts.config.reports
        if parts.tokenizer is None or reports.sample_tokens == 0:
            return
        seed = parts.config.runtime.seed + self.state.step
        drawing = SamplingConfig(SAMPLE_TEMPERATURE, SAMPLE_TOP_K, seed=seed % 2**64)
        text = sample_text(
            parts.backend, parts.tokenizer, parts.prompt, reports.sample_tokens, drawing, parts.stop
        )
        parts.display.say(f"step {self.state.step}: sample\n{text}\n")

    def _stop(self) -> bool:
        """Save what was reached."""
        self._settle()
        self._save()
        return False
