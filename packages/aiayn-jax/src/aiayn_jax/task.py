"""The encoder-decoder as a task of ``gpt_trainer``: sentence pairs in, losses and translations out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gpt_data.batch import IGNORE
from gpt_data.display import waiting
from gpt_data.errors import StoppedError, naming
from gpt_data.stopping import StopFlag
from gpt_data.terminal import typed, warn
from gpt_jax.profiling import record
from gpt_trainer.backend import Profile
from gpt_trainer.ranks.peers import Peers
from gpt_trainer.run.record import package_version
from gpt_trainer.run.start import Fresh
from gpt_trainer.run.task import Measured, Measurement, Request
from jaxtyping import Array, Float32

from aiayn_jax import TRANSLATE
from aiayn_jax.checkpoints import Named, Saved, keep_newest, save
from aiayn_jax.config import parameter_count
from aiayn_jax.data.preparation import Prepared, prepare
from aiayn_jax.data.sources import open_corpus
from aiayn_jax.engine import Engine
from aiayn_jax.finish import score_test
from aiayn_jax.parameters import PairBatch
from aiayn_jax.scoring import Result, check_available, score
from aiayn_jax.settings import RunConfig
from aiayn_jax.translation import Decoding, Translator

MANY_EPOCHS = 200
PACKAGES = ("aiayn-jax", "gpt-jax", "jax", "jaxlib")


class StepNumbers(NamedTuple):
    """What a step reports.

    Attributes:
        loss: Mean negative log-likelihood of a target, in nats.
        smoothed_loss: The same against the smoothed target, which is what is trained on.
        grad_norm: Global norm of the gradient.
        updated: Whether the weights moved.
    """

    loss: float
    smoothed_loss: float
    grad_norm: float
    updated: bool


class PendingStep(NamedTuple):
    """A step whose numbers are under way to the host."""

    numbers: Float32[Array, " 4"]

    def fetch(self) -> StepNumbers:
        """Wait for the step, not for those after it."""
        smoothed, loss, norm, updated = np.asarray(self.numbers, np.float64).tolist()
        return StepNumbers(loss, smoothed, norm, bool(updated))


class TranslationTask:
    """Implements ``gpt_trainer.run.task.Task``.

    Args:
        overlap: Read a step's numbers only when the next is launched; without use on a CPU.
    """

    measurements: Sequence[Measurement] = ()
    show_every: int = 0

    def __init__(
        self, config: RunConfig, engine: Engine, prepared: Prepared, stop: StopFlag, *, overlap: bool
    ) -> None:
        self.config, self.engine, self.prepared, self.stop = config, engine, prepared, stop
        self.overlap = overlap
        self.validation: Measurement | None = Measurement(config.reports.eval_every, self._validate)
        self.data: Mapping[str, Any] = prepared.identity()
        self.pin: Mapping[str, str] = prepared.corpus.pin
        versions = {name: package_version(name) for name in PACKAGES}
        self.made_by: Mapping[str, Any] = {"device": engine.device_name(), **versions}
        self._translator = Translator(engine.config, engine.plan, prepared.tokenizer)
        self._tokenizer_json = prepared.tokenizer.to_json().encode()

    def notes(self) -> list[str]:
        """What the user should know of the data."""
        return [*self.prepared.notes, *_too_many_epochs(self.prepared, self.config)]

    def heading(self) -> str:
        """Sizes and length of the run, and what it runs on."""
        model, config = self.engine.config, self.config
        length = config.schedule.words
        if config.schedule.last is not None:
            length += f" ({config.schedule.steps / self.prepared.train.batches_per_epoch:,.1f} epochs)"
        fewer = f" of {config.data.vocab:,} asked for" if model.vocab_size < config.data.vocab else ""
        return (
            f"{parameter_count(model):,} parameters, vocabulary {model.vocab_size:,}{fewer}, "
            f"{length}\n"
            f"aiayn-jax on {self.engine.device_name()}, {config.runtime.precision}"
        )

    @contextmanager
    def batches(self, step: int) -> Iterator[Iterator[PairBatch]]:
        """The batches from a step on, one for each."""
        yield map(self.prepared.train.batch, count(step))

    def tokens(self, batch: PairBatch) -> int:
        """Of both sides, as far as they are filled."""
        return int(batch.source_lengths.sum()) + int(np.count_nonzero(batch.target_out != IGNORE))

    def weight(self, batch: PairBatch) -> int:
        """Its targets."""
        return int(np.count_nonzero(batch.target_out != IGNORE))

    def launch(self, batch: PairBatch, lr: float, step: int, weight: int) -> PendingStep:
        """Launch a step and do not wait for it.

        Args:
            weight: Targets of the batch.
        """
        del weight
        return PendingStep(self.engine.train_step(batch, lr, step))

    def settled(self, step: int, numbers: StepNumbers) -> None:
        """Nothing is kept of a step."""

    def line(self, step: int, batch: PairBatch, numbers: StepNumbers, seconds: float) -> dict[str, Any]:
        """What ``metrics.jsonl`` gets of a step besides its learning rate."""
        del step
        tokens, source = self.tokens(batch), int(batch.source_lengths.sum())
        return {
            "loss": numbers.loss,
            "smoothed_loss": numbers.smoothed_loss,
            "grad_norm": numbers.grad_norm,
            "source_tokens": source,
            "target_tokens": tokens - source,
            "seconds": seconds,
            "tokens_per_second": tokens / max(seconds, 1e-9),
            "peak_memory_bytes": self.engine.peak_memory_bytes(),
        }

    def state(self) -> dict[str, Any]:
        """Nothing besides weights and moments."""
        return {}

    def weights(self) -> Named:
        """The weights, as evidence of a step that failed."""
        return self.engine.export()[0]

    def save(self, run: Path, step: int, trainer: dict[str, Any]) -> Path:
        """Save a step, whole or not at all; the folder."""
        parameters, moments = self.engine.export()
        return save(run, Saved(step, self.engine.config, parameters, self._tokenizer_json, trainer, moments))

    def tidy(self, run: Path, best_step: int | None) -> None:
        """Keep the checkpoints that are to be averaged."""
        del best_step
        reports = self.config.reports
        keep_newest(run, reports.average, reports.save_every, self.config.schedule.last)

    def show(self, step: int) -> None:
        """Translations are part of the evaluation."""

    def conclude(self, run: Path, say: Callable[[str], None]) -> str | None:
        """Score the average of the last checkpoints on the test pairs; None if asked to stop."""
        corpus = self.prepared.corpus
        if score_test(run, self.config, corpus, self._translate_by, say) is None:
            return None
        return typed(TRANSLATE, "--model", str(run), "--text", corpus.test.source[0])

    def profile(self, folder: Path) -> AbstractContextManager[Profile]:
        """Record with JAX's profiler."""
        return record(folder)

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        self.engine.synchronize()

    def _validate(self, step: int) -> Measured | None:
        """The validation loss and, once there is something to translate with, the score."""
        total, targets = 0.0, 0
        for batch in self.prepared.val.in_order():
            if self.stop():
                return None
            nll, found = self.engine.evaluate(batch)
            total, targets = total + nll, targets + found
        loss = total / targets
        line: dict[str, float | int] = {"val_loss": loss, "val_targets": targets}
        said = f"validation loss {loss:.4f}"
        if step and self.config.reports.score_pairs:
            result = self._score()
            if result is None:
                return None
            line[f"val_{result.name}"] = result.value
            said += f", {result}, greedy"
        return Measured(line, said, loss)

    def _score(self) -> Result | None:
        """The score of greedy translations of the first validation pairs."""
        corpus = self.prepared.corpus
        pairs = corpus.val.first(self.config.reports.score_pairs)
        greedy = Decoding(beam=1)
        found = self._translator.translate_until(self.engine.params, pairs.source, greedy, self.stop)
        return None if found is None else score(corpus.score, found, pairs.target)

    def _translate_by(self, weights: Named, sentences: Sequence[str], decoding: Decoding) -> list[str] | None:
        return self._translator.translate_until(self.engine.send(weights), sentences, decoding, self.stop)


def _too_many_epochs(prepared: Prepared, config: RunConfig) -> list[str]:
    epochs = (config.schedule.last or 0) / prepared.train.batches_per_epoch
    if epochs <= MANY_EPOCHS:
        return []
    return [
        f"this run reads its {len(prepared.train.pairs):,} pairs {epochs:,.0f} times: expect it to learn "
        "them by heart, or choose more --data or fewer --steps"
    ]


@contextmanager
def open_task(request: Request, start: Fresh, peers: Peers) -> Iterator[TranslationTask]:
    """Data and model, as the run begins.

    Args:
        peers: This process, whose devices share a batch's rows.

    Raises:
        InputError: If this machine lacks what was asked for, or the data is unusable.
        StoppedError: If a signal came before the first step.
    """
    config, saved, stop = request.config, start.saved, peers.stop
    quiet = config.reports.plain
    with stop.installed(), ended_at_once(stop), waiting("preparing the pairs", plain=quiet):
        corpus = open_corpus(config.data, pin=dict(start.pin) or None, on_notice=warn, should_stop=stop)
        check_available(corpus.score)
        prepared = prepare(corpus, config, saved.tokenizer_json if saved else None)
    with naming():
        engine = Engine(
            config.model_config(prepared.tokenizer.vocab_size), config.runtime, peers.place.devices
        )
    if saved is not None:
        engine.load(saved.parameters, saved.moments)
    yield TranslationTask(config, engine, prepared, stop, overlap=request.gpu)


@contextmanager
def ended_at_once(stop: StopFlag) -> Iterator[None]:
    """Within, the first signal ends what is done: it asks nobody, and leaves nothing behind.

    Raises:
        StoppedError: If a signal came.
    """
    stop.at_once = True
    try:
        yield
    except KeyboardInterrupt:
        raise StoppedError("stopped before the first step; the same command begins again") from None
    finally:
        stop.at_once = False
