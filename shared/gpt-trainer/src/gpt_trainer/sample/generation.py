"""Continuing sequences token by token through a backend's decoder.  Shapes: B rows, n tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import bpe_scratch
import numpy as np
from jaxtyping import Int

from gpt_trainer.backend import Backend
from gpt_trainer.sample.drawing import Sampler, SamplingConfig


def generate(
    backend: Backend, prompt: Int[np.ndarray, " n"], rows: int, config: SamplingConfig
) -> Iterator[Int[np.ndarray, " B"]]:
    """Endless continuations of one prompt, one token per row at a time.

    When a sequence fills the model's context, decoding starts anew from the last half of it; a prompt
    longer than the context is cut to its last half likewise. Between two restarts every token therefore
    sees at least half a context.

    Raises:
        ValueError: If the prompt is empty.
    """
    if len(prompt) == 0:
        raise ValueError("prompt has no tokens; give at least one, such as the end-of-text token")
    context = backend.config.context
    kept = max(1, context // 2)
    sampler = Sampler(config, rows)
    seen = np.tile(prompt.astype(np.int32), (rows, 1))
    while True:
        seen = seen if seen.shape[1] <= context else seen[:, -kept:]
        decoder = backend.decoder(rows)
        logits = decoder.feed(seen)
        while True:
            drawn = sampler.draw(logits)
            yield drawn
            seen = np.concatenate([seen, drawn[:, None]], axis=1)
            if seen.shape[1] > context:
                break
            logits = decoder.feed(seen[:, -1:])


def sample_text(
    backend: Backend,
    tokenizer: bpe_scratch.Tokenizer,
    prompt: str,
    tokens: int,
    config: SamplingConfig,
    stop: Callable[[], bool] = lambda: False,
) -> str:
    """One continuation as text, the prompt included; shorter if ``stop`` says so meanwhile.

    Args:
        prompt: Text to continue; the end-of-text token if empty.
        tokens: Length of the continuation; it ends early at an end-of-text token.
    """
    ids: list[int] = []
    for _, drawn in zip(
        range(tokens), generate(backend, encode_prompt(tokenizer, prompt), 1, config), strict=False
    ):
        if stop() or int(drawn[0]) == tokenizer.end_of_text:
            break
        ids.append(int(drawn[0]))
    return prompt + tokenizer.decode(ids)


def encode_prompt(tokenizer: bpe_scratch.Tokenizer, prompt: str) -> Int[np.ndarray, " n"]:
    """The prompt as it stands at the start of a document: behind the end-of-text token."""
    start = [] if tokenizer.end_of_text is None else [tokenizer.end_of_text]
    return np.array(start + tokenizer.encode(prompt), np.int32)
