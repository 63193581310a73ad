"""``gpt-*-sample``: continue a prompt with a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import bpe_scratch
import numpy as np
from gpt_data.display import waiting
from gpt_data.errors import naming
from gpt_data.flags import parse_flags
from gpt_data.stopping import SOON, StopFlag
from gpt_data.terminal import INTERRUPTED, emit

from gpt_trainer.backend import Backend, OptimizerConfig, Precision, Runtime
from gpt_trainer.errors import InputError
from gpt_trainer.origin import open_model, tokenizer_of
from gpt_trainer.registry import BackendSpec
from gpt_trainer.sample.drawing import SamplingConfig
from gpt_trainer.sample.generation import encode_prompt, generate


@dataclass(frozen=True)
class SampleOptions:
    """What to sample.

    Attributes:
        model: A run, one of its steps, or a Hugging Face GPT-2 folder.
        prompt: Text to continue, behind the end-of-text token that opens every document.
        count: How many continuations.
        tokens: Tokens of each; it ends early at the end-of-text token.
        temperature: Divides the logits; 0 always takes the most likely token.
        top_k: Draw from this many most likely tokens; 0 for all.
        top_p: Draw from the fewest most likely tokens that together have this probability.
        seed: Decides the draws.
        tokenizer_files: Folder with GPT-2's tokenizer files, for a model that comes without.
        device: cpu, gpu, or auto.
        precision: Precision of products.
    """

    model: Path
    prompt: str = ""
    count: int = 1
    tokens: int = 200
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    seed: int = 0
    tokenizer_files: Path | None = None
    device: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Precision = "float32"


def sample(spec: BackendSpec, argv: Sequence[str]) -> int:
    """Print continuations; the exit status is 0, or 130 if interrupted.

    Raises:
        InputError: If the model or a value is unusable.
    """
    options, backend_options = _parse(spec, argv)
    drawing = _check(options)
    origin = open_model(options.model)
    tokenizer = tokenizer_of(origin, options.model, options.tokenizer_files)
    prompt = _encode(tokenizer, options.prompt)
    runtime = Runtime(options.precision, options.device)
    with waiting("loading the model"):
        with naming():
            backend = spec.create(origin.saved.model, OptimizerConfig(), runtime, backend_options)
        backend.load(origin.saved.parameters)
    stop = StopFlag()
    with stop.installed(SOON, after=1.0):
        _print_samples(backend, tokenizer, prompt, options, drawing, stop)
    return INTERRUPTED if stop() else 0


def _parse(spec: BackendSpec, argv: Sequence[str]) -> tuple[SampleOptions, Any]:
    flags = parse_flags(
        argv,
        {"sampling": SampleOptions, "backend": spec.options()},
        prog=f"{spec.name}-sample",
        description=f"Continue a text with a GPT-2, by {spec.name}.",
    )
    return flags.sampling, flags.backend


def _check(options: SampleOptions) -> SamplingConfig:
    for name in ("count", "tokens"):
        if getattr(options, name) < 1:
            raise InputError(f"--{name} {getattr(options, name)} is not positive")
    with naming():
        return SamplingConfig(options.temperature, options.top_k or None, options.top_p, options.seed)


def _encode(tokenizer: bpe_scratch.Tokenizer, prompt: str) -> np.ndarray:
    with naming("--prompt"):
        ids = encode_prompt(tokenizer, prompt)
    if len(ids) == 0:
        raise InputError("--prompt is empty, and the tokenizer has no end-of-text token to start from")
    return ids


def _print_samples(
    backend: Backend,
    tokenizer: bpe_scratch.Tokenizer,
    prompt: np.ndarray,
    options: SampleOptions,
    drawing: SamplingConfig,
    stop: StopFlag,
) -> None:
    """One continuation appears as it is drawn; several are printed together at the end."""
    streams = [tokenizer.stream() for _ in range(options.count)]
    texts = [options.prompt] * options.count
    open_rows = set(range(options.count))
    if options.count == 1:
        emit(options.prompt, end="")
    draws = zip(range(options.tokens), generate(backend, prompt, options.count, drawing), strict=False)
    with waiting("drawing", plain=options.count == 1) as tell:
        for before, drawn in draws:
            open_rows -= {row for row in open_rows if int(drawn[row]) == tokenizer.end_of_text}
            if stop() or not open_rows:
                break
            tell(f"drawing {options.count} texts: {before + 1} of {options.tokens} tokens each")
            for row in open_rows:
                piece = streams[row].feed(int(drawn[row]))
                texts[row] += piece
                if options.count == 1:
                    emit(piece, end="")
    tails = [stream.flush() for stream in streams]
    if options.count == 1:
        emit(tails[0])
        return
    for number, (text, tail) in enumerate(zip(texts, tails, strict=True), 1):
        emit(f"--- {number}\n{text}{tail}")
