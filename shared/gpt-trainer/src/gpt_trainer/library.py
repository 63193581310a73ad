"""A backend used from Python: a model from a folder, text from it, a step in one's own loop.

    from gpt_jax import generate, load, train_step        # the same three in gpt_torchfunc and gpt_triton

    model = load("runs/cpu-demo-1")
    print(generate(model, "def "))
    metrics = train_step(model, ids, lr=1e-4)              # ids [B, T + 1]

Everything is NumPy in and out. Shapes: B rows, T positions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bpe_scratch
import numpy as np
from gpt_data.batch import Batch
from jaxtyping import Integer

from gpt_trainer.backend import Backend, OptimizerConfig, Precision, Runtime, StepMetrics
from gpt_trainer.errors import InputError
from gpt_trainer.origin import open_model, tokenizer_of
from gpt_trainer.registry import BackendSpec
from gpt_trainer.sample.drawing import SamplingConfig
from gpt_trainer.sample.generation import sample_text


@dataclass
class Model:
    """A GPT-2 on one device, its optimizer beside it.

    Attributes:
        backend: The whole contract: ``export``, ``evaluate``, ``log_probs``, ``decoder`` and the rest.
        tokenizer: What it came with, or ``None``.
        steps: Steps taken with ``train_step``; AdamW's bias correction and the dropout masks count from here.
    """

    backend: Backend
    tokenizer: bpe_scratch.Tokenizer | None
    steps: int = 0


def load_model(
    spec: BackendSpec,
    folder: str | os.PathLike[str],
    *,
    device: Literal["auto", "cpu", "gpu"] = "auto",
    precision: Precision = "float32",
    seed: int = 0,
    optimizer: OptimizerConfig | None = None,
    **options: Any,
) -> Model:
    """The model of a folder, ready to generate and to train; its optimizer is fresh.

    Args:
        folder: A run, one of its steps, or a Hugging Face GPT-2 folder.
        precision: Of products; weights, the optimizer's state and sums stay float32.
        **options: Flags that only this backend has, as ``attention="written"``.

    Raises:
        ValueError: If the folder holds no model, or an option or the device is not to be had.
    """
    origin = open_model(Path(folder))
    try:
        tokenizer = tokenizer_of(origin, Path(folder))
    except InputError:
        tokenizer = None
    try:
        chosen = spec.options(**options)
    except TypeError as error:
        raise ValueError(f"{spec.name}: {error}") from None
    runtime = Runtime(precision, device, seed)
    backend = spec.create(origin.saved.model, optimizer or OptimizerConfig(), runtime, chosen)
    backend.load(origin.saved.parameters)
    return Model(backend, tokenizer)


def generate(
    model: Model,
    prompt: str = "",
    *,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = 50,
    top_p: float = 1.0,
    seed: int = 0,
) -> str:
    """The prompt and its continuation, which ends early at an end-of-text token.

    The prompt stands at the start of a document: behind the end-of-text token, as in training.

    Args:
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Draw from so many most likely tokens; ``None`` for all.
        top_p: Draw from the fewest most likely tokens that together have this probability.

    Raises:
        ValueError: If the model came without a tokenizer, or a value is out of range.
    """
    if model.tokenizer is None:
        raise ValueError(
            "the model came without a tokenizer; use gpt_trainer.sample.generation.generate with ids"
        )
    drawing = SamplingConfig(temperature, top_k, top_p, seed)
    return sample_text(model.backend, model.tokenizer, prompt, tokens, drawing)


def train_step(
    model: Model, ids: Integer[np.ndarray, "B n"], lr: float, *, skip_above: float = float("inf")
) -> StepMetrics:
    """One optimizer step on rows of T + 1 token ids: each position learns the next one.

    It waits for the step. Loops that must not wait, several micro-batches and packed documents take
    ``model.backend.train_step``.

    Args:
        model: From ``load``; its weights change.
        ids: Token ids, T at most the model's context.

    Raises:
        ValueError: If the ids do not fit the model.
    """
    rows = np.ascontiguousarray(ids, np.int32)
    batch = Batch(rows[:, :-1].copy(), rows[:, 1:].copy(), None)
    metrics = model.backend.train_step([batch], lr, model.steps, skip_above=skip_above).fetch()
    model.steps += 1
    return metrics
