"""The other tokenizers that are timed, where they are installed, with the same vocabulary."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from bpe_scratch.patterns import PATTERNS
from bpe_scratch.tokenizer import Tokenizer

Run = Callable[[], Any]


def encoders(tokenizer: Tokenizer, documents: list[str]) -> dict[str, Callable[[], Run]]:
    """What makes a fresh encoder, by name; each run of it gives the ids of all documents, on one thread.

    Args:
        tokenizer: The tokenizer that all of them implement.
        documents: Texts to encode.
    """

    def ours() -> Run:
        fresh = Tokenizer(tokenizer.vocabulary, pattern=tokenizer.pattern)
        fresh.encode("")
        return lambda: fresh.encode_to_numpy(documents)[0]

    found: dict[str, Callable[[], Run]] = {"bpe-scratch, arrays": ours}
    if find_spec("gigatoken"):
        found["gigatoken, arrays"] = _gigatoken(tokenizer, documents)
    if find_spec("tiktoken"):
        found["tiktoken"] = lambda: _tiktoken_run(tokenizer, documents)
    if find_spec("tokenizers"):
        found["tokenizers"] = _hugging_face(tokenizer, documents)
    return found


def tiktoken_of(tokenizer: Tokenizer) -> Any:
    """An encoding of tiktoken with this vocabulary and pattern.

    Args:
        tokenizer: The tokenizer to copy; special tokens are left out.
    """
    import tiktoken

    expression = PATTERNS.get(tokenizer.pattern, tokenizer.pattern) or r"[\s\S]+"
    ranks = {token: index for index, token in enumerate(tokenizer.vocabulary.tokens) if token is not None}
    return tiktoken.Encoding("bench", pat_str=expression, mergeable_ranks=ranks, special_tokens={})


def _tiktoken_run(tokenizer: Tokenizer, documents: list[str]) -> Run:
    fresh = tiktoken_of(tokenizer)
    return lambda: fresh.encode_ordinary_batch(documents, num_threads=1)


def _hugging_face(tokenizer: Tokenizer, documents: list[str]) -> Callable[[], Run]:
    from tokenizers import Tokenizer as HuggingFace

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    text = tokenizer.to_json()

    def make() -> Run:
        fresh = HuggingFace.from_str(text)
        return lambda: [encoding.ids for encoding in fresh.encode_batch_fast(documents)]

    return make


def _gigatoken(tokenizer: Tokenizer, documents: list[str]) -> Callable[[], Run]:
    import awkward
    import gigatoken

    text = tokenizer.to_json()

    def make() -> Run:
        fresh = gigatoken.Tokenizer.from_json(text)
        return lambda: np.asarray(awkward.flatten(fresh.encode_batch(documents, parallel=False)))

    return make


def train_hugging_face(documents: list[str], merges: int) -> None:
    """Learn merges with Hugging Face's trainer, from GPT-2's pieces.

    Args:
        documents: Texts to learn from.
        merges: How many to learn.
    """
    from tokenizers import Tokenizer as HuggingFace
    from tokenizers import models, pre_tokenizers, trainers

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    model = HuggingFace(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges, min_frequency=2, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator(documents, trainer)
