"""A training run's configuration: frozen sections, one flag per field, checked as a whole.

A section's fields are flags, keys of a TOML file and keys of ``trainer.json`` under the same name.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from gpt_data.packing import Packing

from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.model_config import ModelConfig, ModelSizes
from gpt_trainer.schedules import Schedule, learning_rate
from gpt_trainer.settings.sections import (
    LengthSection,
    ReportSection,
    RuntimeSection,
    require_length,
    require_not_negative,
    require_positive,
    require_seed,
)


@dataclass(frozen=True)
class DataSection:
    """What to train on.

    Attributes:
        data: stdlib, text:PATH, hf:NAME[:CONFIG[:SPLIT]], fineweb-edu, tinystories, shards:DIR, nanogpt:FILE,
            or mix:SOURCE:WEIGHT,SOURCE:WEIGHT of them.
        tokenizer: bytes, bpe-scratch:VOCAB, gpt2 or PATH/tokenizer.json (the shards' own if not given).
        tokenizer_files: Folder with GPT-2's encoder.json and vocab.bpe (from the hub if not given).
        packing: stream joins documents; documents keeps attention within each.
        max_tokens: Take no more of the source than this.
        data_cache: Where prepared tokens are kept (the user's cache folder if not given).
    """

    data: str = "stdlib"
    tokenizer: str | None = "bpe-scratch:50257"
    tokenizer_files: Path | None = None
    packing: Packing = "stream"
    max_tokens: int | None = None
    data_cache: Path | None = None


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
class OptimizerSection(OptimizerConfig):
    """AdamW or Muon, and what is left to the trainer.

    Attributes:
        lr: Highest learning rate.
        skip_spikes: Leave out a step whose gradient norm exceeds this many times its running mean.
    """

    lr: float = 6e-4
    skip_spikes: float | None = None


@dataclass(frozen=True)
class ScheduleSection(LengthSection):
    """Length of the run and learning rate along it.

    Attributes:
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
class GPTReportSection(ReportSection):
    """What is evaluated, kept and sampled.

    Attributes:
        eval_rows: Validation rows of one evaluation, the same every time.
        keep_last: Newest checkpoints to keep, besides the best.
        sample_every: Steps between samples of text.
        sample_prompt: What samples continue, behind the end-of-text token (the first words of the held-out
            text if not given).
        sample_tokens: Tokens of a sample.
    """

    eval_rows: int = 256
    keep_last: int = 3
    sample_every: int = 1000
    sample_prompt: str | None = None
    sample_tokens: int = 128


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run, in sections.

    Raises:
        ValueError: If a value is out of range or two do not fit each other.
    """

    model: ModelSizes = field(default_factory=ModelSizes)
    data: DataSection = field(default_factory=DataSection)
    batch: BatchSection = field(default_factory=BatchSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    runtime: RuntimeSection = field(default_factory=RuntimeSection)
    reports: GPTReportSection = field(default_factory=GPTReportSection)

    def __post_init__(self) -> None:
        _check_counts(self)
        _check_batch(self)
        _check_ranges(self)

    @property
    def rows(self) -> int:
        """Rows of one optimizer step."""
        return self.batch.tokens_per_step // self.model.context

    def model_config(self, vocab_size: int) -> ModelConfig:
        """Sizes of a fresh model with the tokenizer's vocabulary."""
        return ModelConfig(**asdict(self.model), vocab_size=vocab_size)


def rate_at(config: TrainConfig, step: int, end: int) -> float:
    """The learning rate of a run's step.

    Args:
        step: Optimizer steps already taken, from 0.
        end: The last step, as far as it can be told.
    """
    schedule = config.schedule
    total = schedule.schedule_steps or end
    return learning_rate(
        schedule.schedule,
        step,
        peak=config.optimizer.lr,
        warmup=min(schedule.warmup, total),
        total=total,
        floor=schedule.lr_floor,
        decay=schedule.decay_fraction,
    )


def _check_counts(config: TrainConfig) -> None:
    data, batch, schedule, reports = config.data, config.batch, config.schedule, config.reports
    require_positive({name: getattr(batch, name) for name in ("tokens_per_step", "micro_batch")})
    require_length(schedule)
    require_positive({"lr": config.optimizer.lr})
    require_positive({name: getattr(reports, name) for name in ("eval_rows", "keep_last", "log_every")})
    require_positive({"max_tokens": data.max_tokens, "schedule_steps": schedule.schedule_steps})
    counts = ("eval_every", "save_every", "sample_every", "sample_tokens")
    require_not_negative({"warmup": schedule.warmup, **{name: getattr(reports, name) for name in counts}})


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
    require_seed(config.runtime.seed)
