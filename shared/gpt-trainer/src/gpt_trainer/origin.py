"""Where a run's weights come from: a run to resume, a model to start from, or nothing."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import bpe_scratch
from gpt_data.manifest import MAX_TOKENIZER_BYTES
from gpt_data.published import GPT2_VOCABULARY
from gpt_data.store.reading import read_bytes
from gpt_data.tokenizers import gpt2_files

from gpt_trainer.checkpoint import (
    SavedModel,
    find_steps,
    load_huggingface,
    load_model,
    resolve,
)
from gpt_trainer.checkpoint.discovery import CHECKPOINTS, is_step
from gpt_trainer.checkpoint.manifest import CONFIG, TOKENIZER
from gpt_trainer.errors import InputError

A_MODEL = "give a run, one of its steps or a Hugging Face GPT-2"


class Origin(NamedTuple):
    """A model to start from.

    Attributes:
        saved: Its weights.
        tokenizer: How to name its tokenizer on the command line, if it has one.
        tokenizer_files: The folder with that tokenizer's files.
    """

    saved: SavedModel
    tokenizer: str | None = None
    tokenizer_files: Path | None = None


def run_of_step(path: Path) -> Path:
    """The run's folder that a run's, its checkpoints' or a step's path belongs to.

    Raises:
        InputError: If it is a step outside of a run.
    """
    path = path.resolve() if path.name in ("", "..") else path
    if path.name == CHECKPOINTS:
        return path.parent
    if not is_step(path):
        return path
    if path.absolute().parent.name != CHECKPOINTS:
        raise InputError(
            f"{path} is not in a run's folder {CHECKPOINTS}/; "
            f"start a new run with --init-from {shlex.quote(str(path))}"
        )
    return path.parent.parent


def check_folder(path: Path) -> None:
    """Refuse a model that is no folder, before it is opened.

    Raises:
        InputError: If it is none.
    """
    if not path.is_dir():
        raise InputError(f"{path} is not a folder; {A_MODEL}")


def open_model(path: Path) -> Origin:
    """Load a model: a run, one of its steps, or a Hugging Face GPT-2 folder.

    Raises:
        InputError: If it is none of these, or damaged.
    """
    check_folder(path)
    if is_step(path) or find_steps(run_of_step(path)):
        step = resolve(path)
        saved = load_model(step)
        return Origin(saved, str(step / TOKENIZER) if saved.tokenizer_json is not None else None)
    if (path / CHECKPOINTS).is_dir() or (path / "run.json").is_file():
        raise InputError(f"{path} is a run without a checkpoint yet")
    return _open_huggingface(path)


def _open_huggingface(path: Path) -> Origin:
    if not (path / CONFIG).exists():
        raise InputError(f"{path} holds neither {CHECKPOINTS} nor {CONFIG}; {A_MODEL}")
    model, parameters = load_huggingface(path)
    if (path / TOKENIZER).is_file():
        content = read_bytes(path / TOKENIZER, MAX_TOKENIZER_BYTES, follow_link=True)
        return Origin(SavedModel(0, model, parameters, content), str(path / TOKENIZER))
    saved = SavedModel(0, model, parameters, None)
    if gpt2_files(path):
        return Origin(saved, "gpt2", path)
    return Origin(saved, "gpt2" if model.vocab_size == GPT2_VOCABULARY.size else None)


def parse_tokenizer(content: bytes, where: str) -> bpe_scratch.Tokenizer:
    """A tokenizer from the bytes of its file.

    Raises:
        InputError: If it is not one that is supported.
    """
    return _guarded(lambda: bpe_scratch.Tokenizer.from_json(content.decode()), where)


def _guarded(make: Callable[[], bpe_scratch.Tokenizer], where: Path | str) -> bpe_scratch.Tokenizer:
    try:
        return make()
    except (ValueError, OSError) as error:
        raise InputError(f"cannot read the tokenizer of {where}: {error}") from None


def tokenizer_of(origin: Origin, where: Path, files: Path | None = None) -> bpe_scratch.Tokenizer:
    """The tokenizer that a model came with.

    Raises:
        InputError: If there is none, or it does not fit the model.
    """
    if origin.saved.tokenizer_json is not None and files is None:
        tokenizer = parse_tokenizer(origin.saved.tokenizer_json, str(where))
    else:
        folder = files or origin.tokenizer_files
        found = None if folder is None else gpt2_files(folder)
        if folder is None or found is None:
            raise InputError(f"{where} has no tokenizer; name its files with --tokenizer-files")
        tokenizer = _guarded(partial(bpe_scratch.Tokenizer.from_gpt2, *found), folder)
    if tokenizer.vocab_size != origin.saved.model.vocab_size:
        raise InputError(
            f"the tokenizer has a vocabulary of {tokenizer.vocab_size}, the model {where} one of "
            f"{origin.saved.model.vocab_size}"
        )
    return tokenizer
