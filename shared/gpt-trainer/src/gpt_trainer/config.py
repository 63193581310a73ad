"""A training run's configuration: frozen sections, one flag per field, checked as a whole.

A section's fields are flags, keys of a TOML file and keys of ``trainer.json`` under the same name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from gpt_data.packing import Packing

from gpt_trainer.backend import OptimizerConfig, Precision
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.schedules import Schedule, learning_rate


@dataclass(frozen=True)
class ModelSection:
    """Sizes of the model; its vocabulary is the tokenizer's.

    Attributes:
        n_layer: Blocks.
        n_head: Attention heads per block.
        d_model: Width of the residual stream.
        context: Tokens of a training row, at most the model's positions.
        dropout: Dropout rate in training.
    """

    n_layer: int = 12
    n_head: int = 12
    d_model: int = 768
    context: int = 1024
    dropout: float = 0.0


@dataclass(frozen=True)
class DataSection:
    """What to train on.

    Attributes:
        data: stdlib, text:PATH, hf:NAME[:CONFIG[:SPLIT]], fineweb-edu, tinystories, shards:DIR, nanogpt:FILE.
        tokenizer: bytes, bpe-scratch:VOCAB, gpt2 or PATH/tokenizer.json (the shards' own if not given).
        tokenizer_files: Folder with GPT-2's encoder.json and vocab.bpe (from the hub if not given).
        packing: stream joins documents; documents keeps attention within each.
        max_tokens: Take no more of the source than this.
        data_cache: Where prepared tokens are kept (the user's cache folder if not given).
        workers: Processes that encode text (one per processor if not given).
    """

    data: str = "stdlib"
    tokenizer: str | None = "bpe-scratch:50257"
    tokenizer_files: Path | None = None
    packing: Packing = "stream"
    max_tokens: int | None = None
    data_cache: Path | None = None
    workers: int | None = None


@dataclass(frozen=True)
class BatchSection:
    """How many tokens a step has and how they are cut.

    Attributes:
        tokens_per_step: Tokens of one optimizer step, a multiple of the context.
        micro_batch: Rows that are on the device at a time; gradients accumulate over them.
    """

    tokens_per_step: int = 524_288
    micro_batch: int = 32


@dataclass(frozen=True)
class OptimizerSection:
    """AdamW.

    Attributes:
        lr: Highest learning rate.
        weight_decay: Decoupled decay of matrices and embeddings.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        epsilon: Added to the root of the second moment.
        clip_norm: Largest gradient norm; 0 for no clipping.
        skip_spikes: Leave out a step whose gradient norm exceeds this many times its running mean.
    """

    lr: float = 6e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    clip_norm: float = 1.0
    skip_spikes: float | None = None


@dataclass(frozen=True)
class ScheduleSection:
    """Length of the run and learning rate along it.

    Attributes:
        steps: Optimizer steps in all.
        schedule: Shape of the learning rate after warm-up; wsd is warm-up, stable, decay.
        warmup: Steps of linear warm-up; all of a run that is shorter.
        lr_floor: Last learning rate as a fraction of the highest (cosine, linear, wsd).
        decay_fraction: Share of the steps in which wsd decays.
        schedule_steps: Steps along which the learning rate takes its course, to stay where it ends (all if
            not given).
    """

    steps: int = 19_073
    schedule: Schedule = "cosine"
    warmup: int = 700
    lr_floor: float = 0.1
    decay_fraction: float = 0.2
    schedule_steps: int | None = None


@dataclass(frozen=True)
class RuntimeSection:
    """Where and how it runs.

    Attributes:
        device: cpu, gpu, or auto: a GPU if the backend can use one.
        precision: Precision of products (bfloat16 on a GPU and float32 on a CPU if not given).
        seed: Decides weights, data order and dropout.
        deterministic: Forbid library routines whose results differ from run to run.
    """

    device: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Precision | None = None
    seed: int = 0
    deterministic: bool = True


@dataclass(frozen=True)
class ReportSection:
    """When to evaluate, save, sample and report; 0 means never, except that the end is always saved.

    Attributes:
        eval_every: Steps between evaluations.
        eval_rows: Validation rows of one evaluation, the same every time.
        save_every: Steps between checkpoints.
        keep_last: Newest checkpoints to keep, besides the best.
        sample_every: Steps between samples of text.
        sample_prompt: What samples continue, behind the end-of-text token (the first words of the held-out
            text if not given).
        sample_tokens: Tokens of a sample.
        log_every: Steps between plain lines.
        plain: Plain lines even on a terminal.
        tensorboard: Also write TensorBoard files.
        trackio: Also report to trackio.
        wandb: Also report to Weights & Biases.
    """

    eval_every: int = 250
    eval_rows: int = 256
    save_every: int = 250
    keep_last: int = 3
    sample_every: int = 1000
    sample_prompt: str | None = None
    sample_tokens: int = 128
    log_every: int = 10
    plain: bool = False
    tensorboard: bool = False
    trackio: bool = False
    wandb: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run, in sections.

    Raises:
        ValueError: If a value is out of range or two do not fit each other.
    """

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    batch: BatchSection = field(default_factory=BatchSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    runtime: RuntimeSection = field(default_factory=RuntimeSection)
    reports: ReportSection = field(default_factory=ReportSection)

    def __post_init__(self) -> None:
        self.model_config(vocab_size=1)
        self.optimizer_config()
        _check_positive(self)
        _check_batch(self)
        _check_ranges(self)

    @property
    def rows(self) -> int:
        """Rows of one optimizer step."""
        return self.batch.tokens_per_step // self.model.context

    def model_config(self, vocab_size: int) -> ModelConfig:
        """Sizes of a fresh model with the tokenizer's vocabulary."""
        model = self.model
        return ModelConfig(
            model.n_layer, model.n_head, model.d_model, model.context, vocab_size, model.dropout
        )

    def optimizer_config(self) -> OptimizerConfig:
        """The part of the optimizer's settings that a backend gets."""
        section = self.optimizer
        return OptimizerConfig(
            section.beta1, section.beta2, section.epsilon, section.weight_decay, section.clip_norm
        )


def rate_at(config: TrainConfig, step: int) -> float:
    """The learning rate of a run's step.

    Args:
        config: The settings.
        step: Optimizer steps already taken, from 0.
    """
    schedule = config.schedule
    total = schedule.schedule_steps or schedule.steps
    return learning_rate(
        schedule.schedule,
        step,
        peak=config.optimizer.lr,
        warmup=min(schedule.warmup, total),
        total=total,
        floor=schedule.lr_floor,
        decay=schedule.decay_fraction,
    )


SECTIONS = {item.name: item for item in fields(TrainConfig)}


def _check_positive(config: TrainConfig) -> None:
    values = {
        "tokens_per_step": config.batch.tokens_per_step,
        "micro_batch": config.batch.micro_batch,
        "lr": config.optimizer.lr,
        "steps": config.schedule.steps,
        "eval_rows": config.reports.eval_rows,
        "keep_last": config.reports.keep_last,
        "log_every": config.reports.log_every,
    }
    optional = {
        "max_tokens": config.data.max_tokens,
        "workers": config.data.workers,
        "schedule_steps": config.schedule.schedule_steps,
    }
    values.update({name: value for name, value in optional.items() if value is not None})
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}={value} is not positive and finite")
    reports, warmup = config.reports, config.schedule.warmup
    counts = {name: getattr(reports, name) for name in ("eval_every", "save_every", "sample_every")}
    for name, count in {"warmup": warmup, "sample_tokens": reports.sample_tokens, **counts}.items():
        if count < 0:
            raise ValueError(f"{name}={count} is negative")


def _check_batch(config: TrainConfig) -> None:
    tokens, context, micro = config.batch.tokens_per_step, config.model.context, config.batch.micro_batch
    if tokens % context:
        raise ValueError(f"tokens_per_step={tokens} is not a multiple of context={context}")
    if config.rows % micro:
        raise ValueError(
            f"tokens_per_step={tokens} makes {config.rows} rows of context={context}, "
            f"which is not a multiple of micro_batch={micro}"
        )


def _check_ranges(config: TrainConfig) -> None:
    schedule, skip = config.schedule, config.optimizer.skip_spikes
    for name, value in (("lr_floor", schedule.lr_floor), ("decay_fraction", schedule.decay_fraction)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name}={value} is not in [0, 1]")
    if skip is not None and not 1.0 < skip < math.inf:
        raise ValueError(f"skip_spikes={skip} is not in (1, infinity)")
    if not 0 <= config.runtime.seed < 2**64:
        raise ValueError(f"seed={config.runtime.seed} is not in [0, 2^64)")
