"""What a checkpoint holds, in NumPy and JSON terms, and the checks before it is written."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import OptimizerState, Parameters, check_optimizer_state, check_parameters


class CheckpointState(NamedTuple):
    """Everything that a run needs to go on as if it had not stopped.

    Attributes:
        step: Optimizer steps taken.
        model: The model's sizes.
        parameters: Weights by canonical name.
        optimizer_state: The optimizer's trees, under the names that it gave them.
        trainer: The trainer's own state as JSON values (configuration, data position, seeds, versions,
            device, schedule). It must not hold NaN or infinity, and nothing that changes from one run to
            an identical one (such as times), or saving the same step again is refused.
        tokenizer_json: The bytes of ``tokenizer.json``, if the data has a tokenizer.
    """

    step: int
    model: ModelConfig
    parameters: Parameters
    optimizer_state: OptimizerState
    trainer: dict[str, Any]
    tokenizer_json: bytes | None


class SavedModel(NamedTuple):
    """The part of a checkpoint that sampling and evaluation need.

    Attributes:
        step: Optimizer steps taken.
        model: The model's sizes.
        parameters: Weights by canonical name.
        tokenizer_json: The bytes of ``tokenizer.json``, if the step has one.
    """

    step: int
    model: ModelConfig
    parameters: Parameters
    tokenizer_json: bytes | None


def check_state(state: CheckpointState) -> None:
    """Refuse a state that could not be loaded again.

    Raises:
        ValueError: If the step is negative, a tensor does not fit the model or is not finite, or the
            trainer's state is not JSON.
    """
    if state.step < 0:
        raise ValueError(f"step={state.step} is negative")
    check_parameters(state.parameters, state.model)
    check_optimizer_state(state.optimizer_state, state.model)
    try:
        json.dumps(state.trainer, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"the trainer's state of step {state.step} is not JSON: {error}") from None
