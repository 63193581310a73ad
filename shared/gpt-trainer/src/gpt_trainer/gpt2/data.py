"""GPT-2's data: prepared, opened, held to a model, cut into batches."""

from __future__ import annotations

from typing import Any

import bpe_scratch
from bpe_scratch.patterns import to_utf8
from gpt_data.cache import cached_dataset
from gpt_data.dataset import Dataset
from gpt_data.display import watched
from gpt_data.errors import naming
from gpt_data.loader import BatchLoader
from gpt_data.mixture import Mixture, long_enough
from gpt_data.published import GPT2_VOCABULARY
from gpt_data.stopping import StopFlag
from gpt_data.stream import TokenStream

from gpt_trainer.errors import InputError
from gpt_trainer.gpt2.cut import Cut
from gpt_trainer.gpt2.settings import DataSection, TrainConfig
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.origin import parse_tokenizer
from gpt_trainer.ranks.place import Place

MANY_EPOCHS = 20
PROMPT_TOKENS, PROMPT_WORDS, PROMPT_CHARACTERS = 64, 2, 24


def open_data(section: DataSection, stop: StopFlag, *, plain: bool, only: str | None = None) -> Dataset:
    """Prepare the data if that was not done before, and open it.

    Args:
        stop: Ends the preparation, which can be gone on with.
        only: The split that is wanted; both if None.

    Raises:
        InputError: If it cannot be had.
    """
    with watched(stop, plain=plain) as show:
        return cached_dataset(
            section.data,
            section.tokenizer,
            cache_dir=section.data_cache,
            tokenizer_files=section.tokenizer_files,
            max_tokens=section.max_tokens,
            only=only,
            on_progress=show,
            should_stop=stop,
        )


def likely_vocab(config: TrainConfig) -> int:
    """The vocabulary before the tokenizer exists: only to know how much space will be needed."""
    size = (config.data.tokenizer or "").removeprefix("bpe-scratch:")
    return max(1, int(size)) if size.isascii() and size.isdecimal() else GPT2_VOCABULARY.size


def data_tokenizer(dataset: Dataset) -> bpe_scratch.Tokenizer | None:
    """The tokenizer that the data was made with, if it is known."""
    if dataset.vocabulary.tokenizer_json is None:
        return None
    return parse_tokenizer(dataset.vocabulary.tokenizer_json, str(dataset.folder))


def choose_prompt(config: TrainConfig, dataset: Dataset, tokenizer: bpe_scratch.Tokenizer | None) -> str:
    """What samples continue: as asked for, or the held-out text's first words.

    Raises:
        InputError: If what is asked for is no valid Unicode.
    """
    if config.reports.sample_prompt is not None:
        with naming("--sample-prompt"):
            to_utf8(config.reports.sample_prompt)
        return config.reports.sample_prompt
    if config.data.data == "stdlib":
        # its first words would be those of a licence or of an import
        return "def"
    if tokenizer is None:
        return ""
    ids = dataset.opening(PROMPT_TOKENS)
    text = tokenizer.decode([token for token in ids.tolist() if token != tokenizer.end_of_text])
    words = next((line.split() for line in text.splitlines() if line.strip()), [])
    return " ".join(words[:PROMPT_WORDS])[:PROMPT_CHARACTERS]


def check_model(model: ModelConfig, saved_tokenizer: bytes | None, dataset: Dataset, where: str) -> None:
    """Refuse data that a loaded model cannot read.

    Raises:
        InputError: If the vocabulary or the tokenizer is another one.
    """
    if dataset.vocabulary.size != model.vocab_size:
        raise InputError(
            f"the data has a vocabulary of {dataset.vocabulary.size}, the model of {where} one of "
            f"{model.vocab_size}; choose the --tokenizer that it was trained with"
        )
    tokenizer = data_tokenizer(dataset)
    if saved_tokenizer is None or tokenizer is None:
        return
    if parse_tokenizer(saved_tokenizer, where).sha256 != tokenizer.sha256:
        raise InputError(
            f"the data was made with another tokenizer than the model of {where}; choose --tokenizer"
        )


def val_loader(config: TrainConfig, dataset: Dataset, cut: Cut, place: Place) -> BatchLoader | None:
    """Validation batches of one micro-batch; None if the data holds too little for a row."""
    stream = long_enough(dataset.val, config.model.context)
    return None if stream is None else _loader(config, stream, cut.size * place.world, place)


def train_loader(config: TrainConfig, dataset: Dataset, place: Place) -> BatchLoader:
    """Training batches, each a process's rows of an optimizer step.

    Raises:
        InputError: If the training split is shorter than a row.
    """
    return _loader(config, dataset.train, config.rows, place)


def _loader(config: TrainConfig, stream: TokenStream | Mixture, rows: int, place: Place) -> BatchLoader:
    return BatchLoader(
        stream,
        rows=rows,
        context=config.model.context,
        seed=config.runtime.seed,
        packing=config.data.packing,
        rank=place.rank,
        world=place.world,
    )


def notes(config: TrainConfig, dataset: Dataset, train: BatchLoader) -> list[str]:
    """What the user should know of the data before the first step."""
    length, found, val = config.schedule, list[str](), long_enough(dataset.val, config.model.context)
    if dataset.sources:
        left = val if isinstance(val, Mixture) else "none, as none is long enough"
        found.append(f"mixed from {dataset.train}; validated on the held-out text of {left}")
    tokens = length.train_tokens or (length.last or 0) * config.batch.tokens_per_step
    epochs = tokens / (train.windows * config.model.context)
    what = "one of its sources" if dataset.sources else f"its {dataset.train.tokens:,} training tokens"
    if epochs > MANY_EPOCHS:
        found.append(
            f"this run reads {what} {epochs:,.0f} times: "
            "expect it to learn them by heart, or choose more --data or fewer --steps"
        )
    if val is None:
        found.append(
            f"the data holds {dataset.val.tokens} validation tokens, too few for a row: no evaluation"
        )
    return found


def describe(dataset: Dataset, tokenizer: bpe_scratch.Tokenizer | None) -> dict[str, Any]:
    """What identifies the data."""
    sources = {"sources": dataset.sources} if dataset.sources else {}
    return sources | {
        "fingerprint": dataset.fingerprint,
        "vocab_size": dataset.vocabulary.size,
        "tokenizer_sha256": None if tokenizer is None else tokenizer.sha256,
    }
