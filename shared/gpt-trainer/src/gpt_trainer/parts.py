"""What a training loop works with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bpe_scratch
from gpt_data.loader import BatchLoader
from gpt_data.stopping import StopFlag

from gpt_trainer.backend import Backend
from gpt_trainer.config import TrainConfig
from gpt_trainer.display import Display
from gpt_trainer.extra_evaluation import ExtraEvaluation
from gpt_trainer.metrics import MetricsFile
from gpt_trainer.record import Record
from gpt_trainer.sinks import Sink


@dataclass(frozen=True)
class RunParts:
    """What a loop works with.

    Attributes:
        run: The run's folder.
        record: Its lasting description.
        backend: The model.
        train: Training batches, one optimizer step each.
        val: Validation batches; None if the data holds too little for one.
        tokenizer: Turns samples into text; None if the data has none.
        display: Shows the run.
        metrics: The run's metrics file.
        sinks: Where metrics go besides.
        stop: Asked in every loop.
        profile: Steps to record; 0 for none.
        overlap: Read a step's metrics only when the next is launched; without use on a CPU.
        evaluations: What to evaluate besides the validation loss.
        prompt: What samples continue.
    """

    run: Path
    record: Record
    backend: Backend
    train: BatchLoader
    val: BatchLoader | None
    tokenizer: bpe_scratch.Tokenizer | None
    display: Display
    metrics: MetricsFile
    sinks: list[Sink]
    stop: StopFlag
    profile: int = 0
    overlap: bool = False
    evaluations: Sequence[ExtraEvaluation] = ()
    prompt: str = ""

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return self.record.config
