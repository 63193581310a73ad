"""HellaSwag at the pauses of a training run: ``gpt-*-train --eval-hellaswag-every N``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import bpe_scratch
from gpt_data.stopping import StopFlag
from gpt_data.terminal import warn
from gpt_trainer.errors import InputError
from gpt_trainer.evaluate.extra import EvaluationSpec, Measure
from gpt_trainer.model_config import ModelConfig

from hellaswag_eval.evaluation import GivesLogProbs, evaluate_backend
from hellaswag_eval.models import encoder
from hellaswag_eval.protocols import Example, allowed_protocols, encode_items
from hellaswag_eval.results import Evaluation
from hellaswag_eval.scoring import EvaluationStoppedError, Plan
from hellaswag_eval.sources import choose, read_items

SUBSET_SEED = 0
"""The subset is the same in every run, whatever the run's seed, so that runs can be compared."""
TOKENS_PER_BATCH = 8192
"""A fraction of what a training step holds, as the optimizer's state is on the device too."""
MOST_SHAPES = 4


@dataclass(frozen=True)
class Options:
    """When and on what to score HellaSwag.

    Attributes:
        eval_hellaswag_every: Steps between HellaSwag evaluations; 0 means never.
        eval_hellaswag_items: Items of one evaluation, the same every time and in every run.
        eval_hellaswag_data: JSON lines of HellaSwag's items, compressed or not (from the hub if not given).
        eval_hellaswag_protocol: completion, harness or both.
    """

    eval_hellaswag_every: int = 0
    eval_hellaswag_items: int = 200
    eval_hellaswag_data: Path | None = None
    eval_hellaswag_protocol: Literal["completion", "harness", "both"] = "completion"


def prepare(options: Options, model: ModelConfig, tokenizer: bpe_scratch.Tokenizer | None) -> Measure:
    """Read and encode the items.

    Raises:
        InputError: If the items cannot be read, one does not fit, the tokenizer is not known or has other ids
            than the model, or an ending is longer than the model's context.
    """
    if options.eval_hellaswag_items < 1:
        raise InputError(f"--eval-hellaswag-items {options.eval_hellaswag_items} is not positive")
    if tokenizer is None or tokenizer.vocab_size > model.vocab_size:
        have = "is not known" if tokenizer is None else f"has {tokenizer.vocab_size} ids"
        raise InputError(
            f"--eval-hellaswag-every: the data's tokenizer {have}; HellaSwag's text cannot be encoded for a "
            f"model with a vocabulary of {model.vocab_size}"
        )
    items = choose(read_items(options.eval_hellaswag_data), options.eval_hellaswag_items, SUBSET_SEED)
    protocols = allowed_protocols(options.eval_hellaswag_protocol, items, warn)
    encoded = {name: encode_items(items, encoder(tokenizer), name) for name in protocols}
    for examples in encoded.values():
        _check_lengths(examples, model.context)

    def measure(backend: GivesLogProbs, stop: StopFlag) -> Mapping[str, float | int] | None:
        plan = Plan(TOKENS_PER_BATCH, MOST_SHAPES, share=False, should_stop=stop)
        try:
            found = [
                evaluate_backend(backend, examples, protocol=name, plan=plan)
                for name, examples in encoded.items()
            ]
        except EvaluationStoppedError:
            return None
        return {name: value for evaluation in found for name, value in _metrics(evaluation).items()}

    return measure


def _check_lengths(examples: list[Example], context: int) -> None:
    for example in examples:
        longest = max(map(len, example.endings))
        if longest > context:
            raise InputError(
                f"--eval-hellaswag-every: an ending of item {example.row} has {longest} tokens, the model's "
                f"context is {context}; choose a larger --context or vocabulary, or fewer items"
            )


def _metrics(evaluation: Evaluation) -> dict[str, float | int]:
    prefix = f"hellaswag_{evaluation.protocol}"
    metrics: dict[str, float | int] = {f"{prefix}_items": len(evaluation.answers)}
    for name, figure in evaluation.figures.items():
        metrics[f"{prefix}_{name}"] = figure.value
        if figure.stderr is not None:
            metrics[f"{prefix}_{name}_stderr"] = figure.stderr
    return metrics | {f"{prefix}_truncated": evaluation.truncated}


SPEC = EvaluationSpec("hellaswag", Options, prepare)
