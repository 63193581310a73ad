"""The training loop: steps, and between them evaluations and checkpoints.

On a GPU the metrics of a step are read when the next one is under way; before anything that looks at
the weights all of them are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from gpt_data.batch import IGNORE
from gpt_data.stopping import StopFlag
from gpt_trainer.backend import StepMetrics
from gpt_trainer.errors import NonFiniteError
from gpt_trainer.evidence import refuse_non_finite
from gpt_trainer.report.display import Display, Report
from gpt_trainer.report.metrics import MetricsFile
from gpt_trainer.report.stopwatch import Stopwatch
from jaxtyping import Array

from aiayn_jax.data.preparation import Prepared
from aiayn_jax.parameters import PairBatch
from aiayn_jax.runs.checkpoints import SavedModel, SavedState, keep_newest, save_state
from aiayn_jax.runs.engine import Engine
from aiayn_jax.runs.record import Record
from aiayn_jax.schedule import noam
from aiayn_jax.scoring import Result, score
from aiayn_jax.translation import Decoding, Translator


@dataclass
class RunParts:
    """What a loop works with.

    Attributes:
        run: The run's folder.
        record: Its lasting description.
        engine: The model.
        prepared: The data.
        display: Shows the run.
        stop: Asked in every loop.
        overlap: Read a step's metrics only when the next is launched; without use on a CPU.
        metrics: The run's metrics file.
        translator: Translates with any weights.
    """

    run: Path
    record: Record
    engine: Engine
    prepared: Prepared
    display: Display
    stop: StopFlag
    overlap: bool = False
    metrics: MetricsFile = field(init=False)
    translator: Translator = field(init=False)

    def __post_init__(self) -> None:
        self.translator = Translator(self.engine.config, self.engine.plan, self.prepared.tokenizer)

    def translate(self, params: Any, sentences: Sequence[str], decoding: Decoding) -> list[str] | None:
        """Translations, or None if asked to stop meanwhile."""
        return self.translator.translate_until(params, sentences, decoding, self.stop)


class Launched(NamedTuple):
    """A step whose metrics are still on the device, and what its launch took."""

    step: int
    lr: float
    batch: PairBatch
    metrics: Array
    seconds: float


class Loop:
    """Takes a run from where it stands to its end.

    Args:
        evaluated: Step of the last evaluation; -1 before the first.
        saved: Step of the checkpoint that it began from; -1 if none.
    """

    def __init__(self, parts: RunParts, step: int = 0, evaluated: int = -1, saved: int = -1) -> None:
        self.parts, self.step, self.evaluated, self._saved = parts, step, evaluated, saved
        self.config = parts.record.config
        self._launched: Launched | None = None
        self._val_loss: float | None = None
        self._watch = Stopwatch()
        self._tokenizer_json = parts.prepared.tokenizer.to_json().encode()

    def run(self) -> bool:
        """Train to the last step; False if asked to stop before.

        Raises:
            NonFiniteError: If the loss or the gradient is not finite; nothing is saved then.
            WriteError: If something cannot be written.
        """
        while self._pause() and self.step < self.config.schedule.steps:
            self._launch()
        if self.parts.stop():
            self._settle()
            self._save()
            return False
        return True

    def _launch(self) -> None:
        """Launch a step, then look after the one before it."""
        schedule, width = self.config.schedule, self.config.model.d_model
        lr = noam(self.step, d_model=width, warmup=schedule.warmup, scale=schedule.lr_scale)
        batch = self.parts.prepared.train.batch(self.step)
        metrics = self.parts.engine.train_step(batch, lr, self.step)
        seconds = self._watch.lap()
        self._settle()
        self._launched = Launched(self.step, lr, batch, metrics, seconds)
        self.step += 1
        if not self.parts.overlap:
            self._settle()

    def _settle(self) -> None:
        """Read, check and write the metrics of the last step launched."""
        if self._launched is None:
            return
        launched, self._launched = self._launched, None
        smoothed, nll, norm, updated = np.asarray(launched.metrics, np.float64).tolist()
        seconds = launched.seconds + self._watch.lap()
        if not updated or not math.isfinite(smoothed + nll):
            weights, batch = self.parts.engine.export()[0], cast("Any", launched.batch)
            found = StepMetrics(smoothed, norm, bool(updated))
            raise refuse_non_finite(self.parts.run, launched.step, batch, found, weights)
        line = {
            "step": launched.step + 1,
            "loss": nll,
            "smoothed_loss": smoothed,
            "lr": launched.lr,
            "grad_norm": norm,
            **self._counts(launched.batch, seconds),
        }
        self.parts.metrics.write(line)
        self._report(line)

    def _counts(self, batch: PairBatch, seconds: float) -> dict[str, float | int]:
        """Tokens of a step, and what it took."""
        source = int(batch.source_lengths.sum())
        target = int(np.count_nonzero(batch.target_out != IGNORE))
        return {
            "source_tokens": source,
            "target_tokens": target,
            "seconds": seconds,
            "tokens_per_second": (source + target) / max(seconds, 1e-9),
            "peak_memory_bytes": self.parts.engine.peak_memory_bytes(),
        }

    def _report(self, line: dict[str, Any]) -> None:
        numbers = (line["loss"], self._val_loss, line["lr"], line["grad_norm"], line["tokens_per_second"])
        steps, memory = self.config.schedule.steps, line["peak_memory_bytes"]
        self.parts.display.report(Report(line["step"], steps, *numbers, None, memory))

    def _due(self, every: int) -> bool:
        """Whether something that happens every so many steps happens now; the end always counts."""
        last = self.step == self.config.schedule.steps
        return last or (every > 0 and self.step % every == 0)

    def _pause(self) -> bool:
        """Evaluate and save as it is due; False if asked to stop."""
        evaluate = self.config.reports.eval_every > 0 and self._due(self.config.reports.eval_every)
        save = self.step > 0 and self._due(self.config.reports.save_every)
        if not (evaluate or save):
            return not self.parts.stop()
        self._settle()
        if evaluate and self.evaluated != self.step and not self._evaluate():
            return False
        if save:
            self._save()
        self._watch.restart()
        return not self.parts.stop()

    def _evaluate(self) -> bool:
        """The validation loss and, once there is something to translate with, the score."""
        total, count = 0.0, 0
        for batch in self.parts.prepared.val.in_order():
            if self.parts.stop():
                return False
            nll, targets = self.parts.engine.evaluate(batch)
            total, count = total + nll, count + targets
        loss = total / count
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"step {self.step}: validation loss {loss}; the last checkpoint is as it was"
            )
        line: dict[str, Any] = {"step": self.step, "val_loss": loss, "val_targets": count}
        said = f"step {self.step}: validation loss {loss:.4f}"
        if self.step and self.config.reports.score_pairs:
            result = self._score()
            if result is None:
                return False
            line[f"val_{result.name}"] = result.value
            said += f", {result}, greedy"
        self._val_loss, self.evaluated = loss, self.step
        self.parts.metrics.write(line)
        self.parts.display.say(said)
        return True

    def _score(self) -> Result | None:
        """The score of greedy translations of the first validation pairs."""
        pairs = self.parts.prepared.corpus.val.first(self.config.reports.score_pairs)
        found = self.parts.translate(self.parts.engine.params, pairs.source, Decoding(beam=1))
        return None if found is None else score(self.parts.prepared.corpus.score, found, pairs.target)

    def _save(self) -> None:
        if self.step in (self._saved, 0):
            return
        parts, reports = self.parts, self.config.reports
        parts.metrics.flush()
        trainer = {**parts.record.as_json(), "evaluated": self.evaluated}
        parameters, first, second = parts.engine.export()
        model = SavedModel(self.step, parts.engine.config, parameters, self._tokenizer_json, trainer)
        folder = save_state(parts.run, SavedState(model, first, second))
        self._saved = self.step
        keep_newest(parts.run, reports.average, reports.save_every, self.config.schedule.steps)
        parts.display.say(f"step {self.step}: saved {folder}")
