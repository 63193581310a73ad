"""A translation run's configuration: frozen sections, one flag per field, checked as a whole.

A section's fields are flags, keys of a TOML file and keys of ``trainer.json`` under the same name.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

from gpt_trainer.schedules import noam
from gpt_trainer.settings import sections

from aiayn_jax.config import MOST_BEAM, PRESETS, Sizes, TransformerConfig


@dataclass(frozen=True)
class DataSection:
    """What to train on.

    Attributes:
        data: numbers, wmt14, multi30k:DIR or pairs:SRC,TGT (two files, line by line).
        direction: Source and target language of wmt14 and multi30k.
        val: Validation files SRC,TGT for pairs; held out of the training files if not given.
        test: Test files SRC,TGT for pairs; the validation pairs if not given.
        max_pairs: Take no more training pairs than this.
        vocab: Tokens of the vocabulary that both languages share.
    """

    data: str = "numbers"
    direction: str = "en-de"
    val: str | None = None
    test: str | None = None
    max_pairs: int | None = None
    vocab: int = 37_000


@dataclass(frozen=True)
class BatchSection:
    """How pairs become batches.

    Attributes:
        batch_tokens: Positions of a batch on either side, filled up or not.
        buckets: Shapes of batches at most, each compiled for itself.
        width_multiple: The positions of a row are a multiple of this.
    """

    batch_tokens: int = 25_000
    buckets: int = 6
    width_multiple: int = 8


@dataclass(frozen=True)
class ScheduleSection(sections.LengthSection):
    """Length of the run and learning rate along it.

    Attributes:
        warmup: Steps over which the learning rate grows; then it falls with the root of the step.
        lr_scale: Factor of the paper's learning rate.
    """

    steps: int = 100_000
    warmup: int = 4000
    lr_scale: float = 1.0


@dataclass(frozen=True)
class RuntimeSection(sections.RuntimeSection):
    """Where and how it runs.

    Attributes:
        unroll: Compile each layer for itself, not one for a loop over all: faster to run.
        wide_logits: Keep the loss's logits in float32; without it they have the precision of products, and a
            GPU is faster.
        attention: Written out, or by cuDNN on a GPU in bfloat16; auto is cuDNN where it can run and a run
            need not repeat itself.
    """

    unroll: bool = False
    wide_logits: bool = True
    attention: Literal["auto", "written", "cudnn"] = "auto"


@dataclass(frozen=True)
class ReportSection(sections.ReportSection):
    """When to evaluate, save and report; 0 means never, except that the end is saved and scored.

    Attributes:
        eval_every: Steps between evaluations.
        save_every: Steps between checkpoints.
        log_every: Steps between plain lines.
        score_pairs: Validation pairs that each evaluation translates, greedily; 0 for the loss alone.
        average: Checkpoints whose weights are averaged at the end; as many are kept.
        beam: Translations kept at each position at the end; 1 is greedy.
        length_penalty: Exponent that keeps beam search from preferring short translations.
    """

    eval_every: int = 1000
    save_every: int = 1000
    log_every: int = 50
    score_pairs: int = 500
    average: int = 5
    beam: int = 4
    length_penalty: float = 0.6


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run, in sections.

    Raises:
        ValueError: If a value is out of range or two do not fit each other.
    """

    model: Sizes = field(default_factory=Sizes)
    data: DataSection = field(default_factory=DataSection)
    batch: BatchSection = field(default_factory=BatchSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    runtime: RuntimeSection = field(default_factory=RuntimeSection)
    reports: ReportSection = field(default_factory=ReportSection)

    def __post_init__(self) -> None:
        self.model_config(vocab_size=1)
        data, reports = self.data, self.reports
        sizes = {"vocab": data.vocab, "max_pairs": data.max_pairs}
        counts = {name: getattr(reports, name) for name in ("average", "beam", "log_every")}
        rate = {name: getattr(self.schedule, name) for name in ("warmup", "lr_scale")}
        sections.require_positive({**sizes, **asdict(self.batch), **rate, **counts})
        sections.require_length(self.schedule)
        free = ("eval_every", "save_every", "score_pairs", "length_penalty")
        sections.require_not_negative({name: getattr(reports, name) for name in free})
        sections.require_seed(self.runtime.seed)
        if reports.beam > MOST_BEAM:
            raise ValueError(f"beam={reports.beam} is above {MOST_BEAM}")

    def model_config(self, vocab_size: int) -> TransformerConfig:
        """Sizes of a model with the tokenizer's vocabulary."""
        return TransformerConfig(vocab_size=vocab_size, **asdict(self.model))

    def learning_rate(self, step: int, end: int) -> float:
        """The paper's rate at a step, from 0; its peak is ``lr_scale / sqrt(d_model warmup)``.

        Args:
            end: The last step, which it does not look at.
        """
        del end
        schedule = self.schedule
        peak = schedule.lr_scale / math.sqrt(self.model.d_model * schedule.warmup)
        return noam(step, peak=peak, warmup=schedule.warmup)


PRESET_OF = {"numbers": "demo", "pairs": "small", "multi30k": "small", "wmt14": "base"}
"""The preset for each kind of data, where none is named."""

RUN_PRESETS: dict[str, RunConfig] = {
    # two minutes on two cores: numbers in figures and in words
    "demo": RunConfig(
        # there is one right answer, so nothing is gained by spreading the target
        model=replace(PRESETS["demo"], label_smoothing=0.0),
        data=DataSection(vocab=400),
        batch=BatchSection(batch_tokens=1024, buckets=2, width_multiple=2),
        schedule=ScheduleSection(steps=1500, warmup=200, lr_scale=0.3),
        runtime=RuntimeSection(unroll=True),
        reports=ReportSection(eval_every=300, score_pairs=128, save_every=100, log_every=50),
    ),
    # some ten thousand pairs, such as Multi30k: minutes on a GPU
    "small": RunConfig(
        model=PRESETS["small"],
        data=DataSection(vocab=10_000),
        batch=BatchSection(batch_tokens=4096, buckets=4),
        schedule=ScheduleSection(steps=6000, warmup=2000),
        reports=ReportSection(eval_every=500, save_every=250, average=8),
    ),
    # the paper's two models and its batches of about 25,000 tokens on either side
    "base": RunConfig(model=PRESETS["base"]),
    "big": RunConfig(
        model=PRESETS["big"], schedule=ScheduleSection(steps=300_000), reports=ReportSection(average=20)
    ),
}
