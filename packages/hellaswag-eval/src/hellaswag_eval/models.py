"""A model to score: one of our checkpoints through an installed backend, or anything of Hugging Face's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import bpe_scratch
import numpy as np
from gpt_data.errors import naming
from gpt_trainer.backend import Backend, OptimizerConfig, Precision, Runtime
from gpt_trainer.errors import InputError
from gpt_trainer.origin import open_model, tokenizer_of
from gpt_trainer.registry import BackendSpec, find_backend, installed_backends

from hellaswag_eval.evaluation import evaluate_backend
from hellaswag_eval.protocols import Encode, Example, Ids, Protocol
from hellaswag_eval.results import Evaluation
from hellaswag_eval.scoring import Plan

Device = Literal["auto", "cpu", "gpu"]
FASTEST = {
    "gpu": ("gpt-triton", "gpt-torchfunc", "gpt-jax"),
    "cpu": ("gpt-torchfunc", "gpt-triton", "gpt-jax"),
}
"""Backends by their speed at this task: on a CPU as the README's figures have it, on a GPU as in training."""
TOKENS_PER_BATCH = {"gpu": 65_536, "cpu": 2_048}


class Model(NamedTuple):
    """What the command needs of a model.

    Attributes:
        encode: Its tokenizer.
        evaluate: Scores encoded items.
        place: ``"gpu"`` or ``"cpu"``.
        description: Model, backend, device and precision, by name.
    """

    encode: Encode
    evaluate: Callable[[Sequence[Example], Protocol, Plan], Evaluation]
    place: str
    description: dict[str, str]


class Opened(NamedTuple):
    """One of our backends with a checkpoint's weights, and the checkpoint's tokenizer."""

    backend: Backend
    tokenizer: bpe_scratch.Tokenizer
    name: str
    runtime: Runtime
    place: str


def open_checkpoint(
    path: Path,
    backend: str | None = None,
    *,
    device: Device = "auto",
    precision: Precision | None = None,
    tokenizer_files: Path | None = None,
) -> Opened:
    """Load a checkpoint into a backend.

    Args:
        path: A run, one of its steps, or a Hugging Face GPT-2 folder.
        backend: Name of an installed backend; the fastest that runs here if None.
        precision: Of products; bfloat16 on a GPU and float32 on a CPU if None.
        tokenizer_files: Folder with GPT-2's files, for a model that comes without.

    Raises:
        InputError: If the model, its tokenizer or the backend cannot be had.
    """
    origin = open_model(path)
    tokenizer = tokenizer_of(origin, path, tokenizer_files)
    spec, place = choose_backend(backend, device)
    runtime = Runtime(precision or ("bfloat16" if place == "gpu" else "float32"), device)
    with naming():
        made = spec.create(origin.saved.model, OptimizerConfig(), runtime, spec.options())
    made.load(origin.saved.parameters)
    return Opened(made, tokenizer, spec.name, runtime, place)


def choose_backend(name: str | None, device: Device) -> tuple[BackendSpec, str]:
    """A backend, and whether it will run on a ``"gpu"`` or a ``"cpu"``.

    Args:
        name: Which one; if None, the first of ``FASTEST`` that is installed and runs there.

    Raises:
        InputError: If none is installed, or not the one named.
    """
    installed = installed_backends()
    names = [name] if name is not None else [known for known in FASTEST["gpu"] if known in installed]
    with naming("--backend"):
        specs = {known: find_backend(known) for known in (names or installed)}
    if not specs:
        raise InputError("no backend is installed; install gpt-jax, gpt-torchfunc or gpt-triton")
    if device != "cpu":
        for spec in specs.values():
            if spec.has_gpu():
                return spec, "gpu"
    place = "gpu" if device == "gpu" else "cpu"
    return min(specs.values(), key=lambda spec: _rank(spec.name, place)), place


def _rank(name: str, place: str) -> int:
    order = FASTEST[place]
    return order.index(name) if name in order else len(order)


def as_model(opened: Opened, path: Path) -> Model:
    """An opened checkpoint as the command needs it."""
    description = {
        "model": str(path),
        "backend": opened.name,
        "device": opened.backend.device_name(),
        "precision": opened.runtime.precision,
    }

    def run(examples: Sequence[Example], protocol: Protocol, plan: Plan) -> Evaluation:
        return evaluate_backend(opened.backend, examples, protocol=protocol, plan=plan)

    return Model(encoder(opened.tokenizer), run, opened.place, description)


def encoder(tokenizer: bpe_scratch.Tokenizer) -> Encode:
    """A tokenizer of ours as the protocols need it.

    Args:
        tokenizer: Encodes many texts at once; special tokens in them are ordinary text.
    """

    def encode(texts: Sequence[str]) -> list[Ids]:
        ids, offsets = tokenizer.encode_to_numpy(texts)
        wide = ids.astype(np.int32)
        return [wide[start:stop] for start, stop in pairwise(offsets.tolist())]

    return encode
