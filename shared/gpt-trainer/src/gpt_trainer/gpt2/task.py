"""GPT-2 as what a run trains."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from gpt_data.batch import Batch
from gpt_data.dataset import Dataset
from gpt_data.display import waiting
from gpt_data.errors import naming
from gpt_data.loader import BatchLoader
from gpt_data.terminal import typed
from gpt_data.tokenizers import size_said

from gpt_trainer.backend import Backend, Pending, Profile, StepMetrics
from gpt_trainer.checkpoint import CheckpointState, prune, save_checkpoint
from gpt_trainer.evaluate.extra import prepare_evaluations
from gpt_trainer.evaluate.validation import Evaluation, evaluate, token_bytes
from gpt_trainer.flops import flops_per_token, peak_flops
from gpt_trainer.gpt2 import data
from gpt_trainer.gpt2.cut import Cut, cut_rows
from gpt_trainer.gpt2.settings import TrainConfig
from gpt_trainer.model_config import MODEL_PRESETS, ModelConfig
from gpt_trainer.parameters import Parameters, init_parameters, parameter_count
from gpt_trainer.ranks.peers import Peers
from gpt_trainer.ranks.place import Place
from gpt_trainer.registry import BackendSpec
from gpt_trainer.run.start import Fresh
from gpt_trainer.run.task import Measured, Measurement, Request
from gpt_trainer.sample.drawing import SamplingConfig
from gpt_trainer.sample.generation import sample_text
from gpt_trainer.spikes import SpikeGuard

SAMPLE_TEMPERATURE, SAMPLE_TOP_K = 0.7, 50


@contextmanager
def open_task(spec: BackendSpec, request: Request, start: Fresh, peers: Peers) -> Iterator[GPT2Task]:
    """Data and model, checked against each other, the weights loaded.

    Args:
        peers: The processes of the run; one of each host prepares the data.

    Raises:
        InputError: If the data cannot be had or does not fit the model, or this machine lacks what was
            asked for.
    """
    config: TrainConfig = request.config
    _refuse_missing_gpu(spec, request)
    cut = cut_rows(config, peers.place)
    plain = config.reports.plain or not sys.stderr.isatty()
    # a run's data is told by both of its splits
    only = "val" if request.actions.eval_only and request.actions.init_from is not None else None
    with peers.in_turn():
        dataset = data.open_data(config.data, peers.stop, plain=plain, only=only)
    try:
        with waiting("loading the model", plain=plain or peers.place.rank > 0):
            backend = _create(spec, request, _model(config, dataset, start), peers.place)
            task = GPT2Task(spec.name, request, backend, dataset, start, peers, cut)
            # after the evaluations are seen to fit: this takes seconds where weights are large
            _load(backend, request, start)
        yield task
    finally:
        dataset.close()


def _refuse_missing_gpu(spec: BackendSpec, request: Request) -> None:
    """Refuse a GPU that is not there before data is prepared, which may take long."""
    if request.config.runtime.device == "gpu" and not spec.has_gpu():
        small = ModelConfig(n_layer=1, n_head=1, d_model=8, context=8, vocab_size=8)
        _create(spec, request, small, Place())


def _create(spec: BackendSpec, request: Request, model: ModelConfig, place: Place) -> Backend:
    # a backend of one process need not know of others
    config, others = request.config, [place] if place.shares > 1 else []
    with naming():
        return spec.create(model, config.optimizer, config.runtime, request.options["backend"], *others)


def _model(config: TrainConfig, dataset: Dataset, start: Fresh) -> ModelConfig:
    """The sizes of the model, checked against the data."""
    if start.saved is None:
        return config.model_config(dataset.vocabulary.size)
    data.check_model(start.saved.model, start.saved.tokenizer_json, dataset, start.where)
    model: ModelConfig = replace(start.saved.model, dropout=config.model.dropout)
    return model


def _load(backend: Backend, request: Request, start: Fresh) -> None:
    saved = start.saved
    weights: Parameters = (
        init_parameters(backend.config, request.config.runtime.seed) if saved is None else saved.parameters
    )
    # a model to begin from has no optimizer
    optimizer_state = saved.optimizer_state if isinstance(saved, CheckpointState) else None
    with naming(start.where):
        backend.load(weights, optimizer_state)


class GPT2Task:
    """Implements ``gpt_trainer.run.task.Task``; see there for what each method promises."""

    def __init__(
        self,
        name: str,
        request: Request,
        backend: Backend,
        dataset: Dataset,
        start: Fresh,
        peers: Peers,
        cut: Cut,
    ) -> None:
        config: TrainConfig = request.config
        self._peers, self._cut = peers, cut
        self._name, self._request = name, request
        self.config, self.backend, self.dataset = config, backend, dataset
        self.overlap = request.gpu
        self.tokenizer = data.data_tokenizer(dataset)
        self._lengths = None if self.tokenizer is None else token_bytes(self.tokenizer)
        self._tokenizer_json = None if self.tokenizer is None else self.tokenizer.to_json().encode()
        self._prompt = data.choose_prompt(config, dataset, self.tokenizer)
        self._spikes = SpikeGuard(config.optimizer.skip_spikes, start.state.own.get("spikes"))
        self._val = data.val_loader(config, dataset, cut, peers.place)
        evaluations = {name: given for name, given in request.options.items() if name != "backend"}
        self.validation = (
            None if self._val is None else Measurement(config.reports.eval_every, self._validate)
        )
        self.measurements: Sequence[Measurement] = prepare_evaluations(
            evaluations, backend, self.tokenizer, peers.agreed
        )
        self.show_every = config.reports.sample_every
        self.data: Mapping[str, Any] = data.describe(dataset, self.tokenizer)
        self.pin: Mapping[str, str] = {}
        self.made_by: Mapping[str, Any] = {"device": backend.device_name(), **backend.choices()}
        peak = peak_flops(backend.device_name(), config.runtime.precision or "float32")
        self._mfu_per_speed = (
            None if peak is None else flops_per_token(backend.config, config.model.context) / peak
        )

    def notes(self) -> list[str]:
        """What the user should know of the data."""
        return data.notes(self.config, self.dataset, self._train)

    @cached_property
    def _train(self) -> BatchLoader:
        return data.train_loader(self.config, self.dataset, self._peers.place)

    def heading(self) -> str:
        """Sizes beside those that the preset's and the tokenizer's names stand for, length, and backend."""
        model, config, preset = self.backend.config, self.config, self._request.preset
        count, named = parameter_count(model), MODEL_PRESETS.get(preset)
        text = f"{count:,} parameters"
        if named is not None and count != parameter_count(named):
            text += f" ({preset} itself has {parameter_count(named):,})"
        text += f", vocabulary {size_said(config.data.tokenizer, model.vocab_size)}"
        made = ", ".join(f"{name} {value}" for name, value in self.backend.choices().items())
        return (
            f"{text}, {config.schedule.words}, {config.batch.tokens_per_step:,} tokens a step\n"
            f"{self._name} on {self.backend.device_name()}, {config.runtime.precision} ({made})"
        )

    def batches(self, step: int) -> AbstractContextManager[Iterator[Batch]]:
        """Batches of one optimizer step each, read ahead."""
        return self._train.prefetch(step)

    def tokens(self, batch: Batch) -> int:
        """Every step has as many."""
        del batch
        return self.config.batch.tokens_per_step

    def weight(self, batch: Batch) -> int:
        """Its targets."""
        return batch.target_count

    def launch(self, batch: Batch, lr: float, step: int, weight: int) -> Pending:
        """Launch a step over micro-batches of this process's rows."""
        cut = self._cut
        micro_batches = [batch.rows(first, first + cut.size) for first in range(0, cut.rows, cut.size)]
        return self.backend.train_step(
            micro_batches,
            lr,
            step,
            first_row=self._peers.place.rank * cut.rows,
            targets=weight,
            skip_above=self._spikes.bound(step),
        )

    def settled(self, step: int, numbers: StepMetrics) -> None:
        """Take the norm into the running mean."""
        self._spikes.observe(step, numbers.grad_norm)

    def line(self, step: int, batch: Batch, numbers: StepMetrics, seconds: float) -> dict[str, Any]:
        """Loss, norm, tokens so far and speed."""
        del batch
        tokens = self.config.batch.tokens_per_step
        speed = tokens / max(seconds, 1e-9)
        mfu = {} if self._mfu_per_speed is None else {"mfu": speed * self._mfu_per_speed}
        return {
            "tokens": (step + 1) * tokens,
            **numbers._asdict(),
            "seconds": seconds,
            "tokens_per_second": speed,
            **mfu,
            "peak_memory_bytes": self.backend.peak_memory_bytes(),
        }

    def state(self) -> dict[str, Any]:
        """The running mean of norms."""
        return {"spikes": self._spikes.state()}

    def weights(self) -> Parameters:
        """The weights by canonical name."""
        return self.backend.export()

    def save(self, run: Path, step: int, trainer: dict[str, Any]) -> Path | None:
        """Save weights, optimizer's, tokenizer and the trainer's state; other ranks than 0 help to gather."""
        backend = self.backend
        if self._peers.place.rank:
            if self.config.runtime.shard != "none":
                backend.export(), backend.export_optimizer_state()
            return None
        trainer = {**trainer, "data_tokens": step * self.config.batch.tokens_per_step}
        arrays = (backend.export(), backend.export_optimizer_state())
        state = CheckpointState(step, backend.config, *arrays, trainer, self._tokenizer_json)
        return save_checkpoint(run, state)

    def tidy(self, run: Path, best_step: int | None) -> None:
        """Keep the newest and the best."""
        prune(run, self.config.reports.keep_last, best_step)

    def evaluate(self) -> Evaluation | None:
        """The validation loss; None if asked to stop meanwhile, or if there is nothing to validate on."""
        return (
            None
            if self._val is None
            else evaluate(self.backend, self._val, self.config.reports.eval_rows, self._peers, self._lengths)
        )

    def _validate(self, step: int) -> Measured | None:
        del step
        found = self.evaluate()
        if found is None:
            return None
        bits = {} if found.bits_per_byte is None else {"val_bits_per_byte": found.bits_per_byte}
        return Measured(
            {"val_loss": found.loss, "val_targets": found.targets, **bits}, str(found), found.loss
        )

    def show(self, step: int) -> str | None:
        """A text that it continues."""
        reports = self.config.reports
        if self.tokenizer is None or reports.sample_tokens == 0:
            return None
        seed = (self.config.runtime.seed + step) % 2**64
        drawing = SamplingConfig(SAMPLE_TEMPERATURE, SAMPLE_TOP_K, seed=seed)
        return sample_text(
            self.backend, self.tokenizer, self._prompt, reports.sample_tokens, drawing, self._peers.agreed
        )

    def conclude(self, run: Path, say: Callable[[str], None]) -> str | None:
        """Nothing follows the last step but a sample by the user."""
        del say
        prompt = ("--prompt", self._prompt) if self._prompt else ()
        return typed(f"{self._name}-sample", "--model", str(run), *prompt)

    def profile(self, folder: Path) -> AbstractContextManager[Profile]:
        """Record with the backend's profiler."""
        return self.backend.profile(folder)

    def synchronize(self) -> None:
        """Wait until all launched work is done."""
        self.backend.synchronize()
