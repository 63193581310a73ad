"""What every backend asks of a step's micro-batches before anything reaches the device."""

from __future__ import annotations

from collections.abc import Sequence

from gpt_data.batch import Batch
from gpt_data.checks import check_batch

from gpt_trainer.model_config import ModelConfig


def target_weight(micro_batches: Sequence[Batch], config: ModelConfig, targets: int | None = None) -> float:
    """One over the number of targets of a step, once its micro-batches are seen to fit the model.

    Args:
        targets: Targets of the whole step, where other processes have the rest; those of ``micro_batches`` if
            ``None``.

    Raises:
        ValueError: If there is none, they differ in shape, one does not fit, or no position has a target.
    """
    if not micro_batches:
        raise ValueError("micro_batches is empty, expected at least one")
    shapes = [batch.tokens.shape for batch in micro_batches]
    if len(set(shapes)) > 1:
        raise ValueError(f"micro-batches differ in shape: {shapes}")
    for batch in micro_batches:
        check_batch(batch, context=config.context, vocab_size=config.vocab_size)
    total = sum(batch.target_count for batch in micro_batches) if targets is None else targets
    if not total:
        raise ValueError("no position of the step has a target")
    return 1.0 / total
