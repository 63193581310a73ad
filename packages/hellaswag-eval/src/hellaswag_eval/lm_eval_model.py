"""A checkpoint of ours as a model of lm-evaluation-harness; needs the extra ``hellaswag-eval[lm-eval]``.

The harness looks for no plug-ins, so its command is started by this module, with the model made known:

    python -m hellaswag_eval.lm_eval_model --model gpt-from-scratch \
        --model_args model=runs/x,backend=gpt-jax --tasks lambada_openai
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gpt_data.batch import IGNORE
from gpt_data.errors import InputError, shown
from gpt_data.terminal import warn
from gpt_trainer.backend import Precision
from gpt_trainer.sample.drawing import SamplingConfig
from gpt_trainer.sample.generation import generate

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    LACKS = f"lm-evaluation-harness needs the extra hellaswag-eval[lm-eval]: {error}"
    if __name__ != "__main__":
        raise type(error)(LACKS) from error
    warn(f"hellaswag_eval.lm_eval_model: {LACKS}")
    sys.exit(InputError.exit_status)

from hellaswag_eval.models import TOKENS_PER_BATCH, encoder, open_checkpoint
from hellaswag_eval.protocols import Example, Ids, encode_together
from hellaswag_eval.rows import pad, separate_rows
from hellaswag_eval.scoring import Plan, score

NAME = "gpt-from-scratch"
MAX_NEW_TOKENS = 256
"""The harness's own default for tasks that do not say."""
MOST_ENDINGS = 16
"""Continuations that share a context, at most."""
SHOWN_CONTEXT = 40


@register_model(NAME)
class GPTFromScratch(LM):
    """Any checkpoint, on any installed backend.

    Args:
        model: A run, one of its steps, or a Hugging Face GPT-2 folder.
        backend: An installed backend; the fastest one if None.
        device: auto, cpu or gpu; the harness's own names ``cuda`` and ``cuda:0`` mean gpu.
        precision: float32 or bfloat16.
        tokenizer_files: Folder with GPT-2's files, for a model that comes without a tokenizer.
        greedy: Whether to find out if a continuation is what greedy decoding gives, which some tasks
            (LAMBADA) count and multiple choice does not; it can take as long as all the rest.
        batch_size: Rows of logits at a time; likelihoods are batched by tokens instead.
        max_batch_size: Accepted, as the harness passes it on, and without effect.
    """

    def __init__(
        self,
        model: str,
        backend: str | None = None,
        device: str | None = None,
        precision: Precision | None = None,
        tokenizer_files: str | None = None,
        greedy: bool = True,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        del batch_size, max_batch_size
        where: Any = "gpu" if device is not None and device.startswith("cuda") else device or "auto"
        files = None if tokenizer_files is None else Path(tokenizer_files)
        opened = open_checkpoint(
            Path(model), backend, device=where, precision=precision, tokenizer_files=files
        )
        self._backend, self._tokenizer, self._greedy = opened.backend, opened.tokenizer, greedy
        self._context = opened.backend.config.context
        self._encode = encoder(opened.tokenizer)
        self._plan = Plan(tokens_per_batch=TOKENS_PER_BATCH[opened.place])

    @property
    def tokenizer_name(self) -> str:
        """What tells requests of one tokenizer from those of another."""
        return self._tokenizer.sha256

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding gives it.

        Args:
            requests: Their ``args`` are a context and what follows it.
            disable_tqdm: Without effect: there is no bar.

        Raises:
            ValueError: If a continuation is empty, or makes no token of its own.
        """
        del disable_tqdm
        pairs = [request.args for request in requests]
        heads, tails = encode_together(self._encode, pairs)
        for (context, continuation), tail in zip(pairs, tails, strict=True):
            if not len(tail):
                after = f"{shown(continuation)} behind {shown(context[-SHOWN_CONTEXT:])}"
                raise ValueError(f"continuation {after} makes no token of its own: it has no likelihood")
        heads = [head if len(head) else self._start() for head in heads]
        log_probs = self._score(heads, tails)
        return [
            (value, self._greedy and self._is_greedy(head, tail, value))
            for head, tail, value in zip(heads, tails, log_probs, strict=True)
        ]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of each text behind the end-of-text token, with as much context as the model takes.

        Args:
            requests: Their ``args`` are a text alone.
            disable_tqdm: Without effect: there is no bar.
        """
        del disable_tqdm
        texts = self._encode([request.args[0] for request in requests])
        windows = [rolling_windows(np.concatenate((self._start(), ids)), self._context) for ids in texts]
        flat = [window for found in windows for window in found]
        values = iter(self._score([head for head, _ in flat], [tail for _, tail in flat]))
        return [math.fsum(next(values) for _ in found) for found in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context up to a stop text, which is left out, the end-of-text token, or a length.

        Args:
            requests: Their ``args`` are a context and a dictionary with ``until``, ``max_gen_toks``,
                ``temperature``, ``do_sample``, ``top_k``, ``top_p``.
            disable_tqdm: Without effect: there is no bar.

        Raises:
            ValueError: If one of these has no meaning.
        """
        del disable_tqdm
        return [self._generate(*request.args) for request in requests]

    def _start(self) -> Ids:
        if self._tokenizer.end_of_text is None:
            raise ValueError("an empty context needs a tokenizer with an end-of-text token")
        return np.array([self._tokenizer.end_of_text], np.int32)

    def _score(self, heads: Sequence[Ids], tails: Sequence[Ids]) -> list[float]:
        """Continuations of one context, where they follow each other, share it."""
        examples: list[Example] = []
        for head, tail in zip(heads, tails, strict=True):
            last = examples[-1] if examples else None
            if last is not None and len(last.endings) < MOST_ENDINGS and np.array_equal(last.context, head):
                examples[-1] = last._replace(endings=(*last.endings, tail))
            else:
                examples.append(Example(head, (tail,), row=len(examples)))
        found = score(self._backend.log_probs, examples, self._context, self._plan, self._backend.decoder)
        return [float(value) for values in found.log_probs for value in values]

    def _is_greedy(self, head: Ids, tail: Ids, log_prob: float) -> bool:
        # the most likely token has at least 1/V, so so small a product holds one that is not
        if log_prob < -len(tail) * math.log(self._backend.config.vocab_size):
            return False
        rows = separate_rows(Example(head, (tail,)), 0, self._context)
        width = min(self._context, -(-len(rows[0].tokens) // 64) * 64)
        padded = pad(rows, 1, width)
        scored = padded.batch.targets[0] != IGNORE
        chosen = self._backend.logits(padded.batch)[0][scored].argmax(axis=-1)
        return bool((chosen == padded.batch.targets[0][scored]).all())

    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        stops = settings.get("until") or []
        stops = [stops] if isinstance(stops, str) else stops
        most = int(_first(settings, ("max_gen_toks", "max_new_tokens"), MAX_NEW_TOKENS))
        if most < 0:
            raise ValueError(f"max_gen_toks={most} is negative")
        prompt = self._encode([context])[0] if context else self._start()
        prompt = prompt[-max(1, self._context - most) :]
        stream, text = self._tokenizer.stream(), ""
        drawn = generate(self._backend, prompt, 1, _drawing(settings))
        for _, token in zip(range(most), drawn, strict=False):
            if int(token[0]) == self._tokenizer.end_of_text:
                break
            text += stream.feed(int(token[0]))
            if any(stop and stop in text for stop in stops):
                break
        return _cut(text + stream.flush(), stops)


def rolling_windows(ids: Ids, context: int) -> list[tuple[Ids, Ids]]:
    """Each token but the first once, in blocks of a context, each behind as many before it as still fit.

    Args:
        ids: A text behind its first token, which is given.
        context: The model's context.

    >>> [(a.tolist(), b.tolist()) for a, b in rolling_windows(np.arange(8, dtype=np.int32), 5)]
    [([0], [1, 2, 3, 4, 5]), ([2, 3, 4, 5], [6, 7])]
    """
    blocks = [(first, min(first + context, len(ids) - 1)) for first in range(0, len(ids) - 1, context)]
    return [(ids[max(0, last - context) : first + 1], ids[first + 1 : last + 1]) for first, last in blocks]


def _drawing(settings: dict[str, Any]) -> SamplingConfig:
    temperature = float(_first(settings, ("temperature",), 0.0))
    if settings.get("do_sample") and temperature == 0.0:
        temperature = 1.0
    if settings.get("do_sample") is False:
        temperature = 0.0
    if temperature == 0.0:
        return SamplingConfig(temperature)
    top_p = float(_first(settings, ("top_p",), 1.0))
    return SamplingConfig(temperature, settings.get("top_k") or None, top_p)


def _first(settings: dict[str, Any], names: Sequence[str], default: Any) -> Any:
    """The first of these that is set; 0 is a value like any other."""
    return next((settings[name] for name in names if settings.get(name) is not None), default)


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text up to the first stop in it."""
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
