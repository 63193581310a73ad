"""Datasets by source and tokenizer: prepared once into the cache, or shards opened where they lie."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gpt_data.dataset import Dataset, mixed
from gpt_data.errors import InputError, WriteError
from gpt_data.manifest import MANIFEST_NAME, TOKENIZER_NAME
from gpt_data.mixture import PREFIX, parse_mixture, quotas_of
from gpt_data.parts import part_folders
from gpt_data.prepare import prepare
from gpt_data.progress import Progress
from gpt_data.published import GPT2_VOCABULARY, Vocabulary
from gpt_data.settings import MAX_DOCUMENT_BYTES, Settings
from gpt_data.sources import open_source
from gpt_data.tokenizers import KINDS as TOKENIZERS
from gpt_data.tokenizers import build_tokenizer, tokenizer_identity


def cached_dataset(
    source: str,
    tokenizer: str | None,
    *,
    cache_dir: Path | None = None,
    tokenizer_files: Path | None = None,
    max_tokens: int | None = None,
    only: str | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Dataset:
    """The dataset of a source and a tokenizer, prepared in the cache if it is not there yet.

    ``mix:SOURCE:WEIGHT,...`` is all of its sources, in these shares. ``shards:DIR`` and ``nanogpt:FILE`` are
    opened where they are. If DIR has a manifest, ``tokenizer`` must be the one that made it; if not
    (published shards), ``tokenizer`` says what the ids mean.

    Args:
        source: One of ``gpt_data.sources.KINDS``.
        tokenizer: One of ``gpt_data.tokenizers.KINDS``; if None, that which shards are made with, which is
            taken for GPT-2's where nothing says so.
        cache_dir: Where prepared folders are kept, each named by what decides its content; ``default_cache``
            if None.
        tokenizer_files: Folder with GPT-2's tokenizer files.
        max_tokens: Each split ends with the document that brings it to this many tokens.
        only: The split that is wanted; both are prepared if None, or if they are there already, or if
            ``max_tokens`` needs them.

    Raises:
        InputError: As for ``prepare``, or if shards and tokenizer do not fit.
        WriteError: As for ``prepare``.
    """
    kind, _, rest = source.partition(":")
    given: dict[str, Any] = {
        "tokenizer_files": tokenizer_files, "max_tokens": max_tokens,
        "on_progress": on_progress, "should_stop": should_stop,
    }  # fmt: skip
    if source.startswith(PREFIX):
        return _mixed(parse_mixture(source), tokenizer, given | {"cache_dir": cache_dir, "only": only})
    if kind == "shards":
        return open_shards(Path(rest), tokenizer, tokenizer_files)
    if kind == "nanogpt":
        return Dataset.open_nanogpt(rest, _vocabulary(Path(rest), tokenizer or "gpt2", tokenizer_files))
    if tokenizer is None:
        raise InputError(f"source {source} is text: give --tokenizer, one of {', '.join(TOKENIZERS)}")
    folder = cache_folder(cache_dir or default_cache(), source, tokenizer, max_tokens)
    if max_tokens is not None or (folder / MANIFEST_NAME).exists():
        only = None
    if only is not None:
        folder = folder.with_name(f"{folder.name}-{only}")
    try:
        return prepare(source, tokenizer, folder, only=only, wait_for_lock=True, **given)
    except WriteError as error:
        # it ends with the advice to choose another folder
        raise WriteError(f"{error} by --data-cache") from error


def _mixed(weights: Mapping[str, float], tokenizer: str | None, given: dict[str, Any]) -> Dataset:
    """Each source prepared or opened; a tokenizer that has to be trained is trained on the first."""
    datasets: dict[str, Dataset] = {}
    # what may be refused is, before hours of preparation
    quotas_of(weights)
    for source in weights:
        datasets[source] = cached_dataset(source, tokenizer, **given)
        trained = tokenizer is None or tokenizer.startswith("bpe-scratch:")
        if trained and datasets[source].vocabulary.tokenizer_json is not None:
            tokenizer = str(datasets[source].folder / TOKENIZER_NAME)
    return mixed(datasets, weights)


def default_cache() -> Path:
    """Where prepared tokens are kept: ``gpt-data`` in the user's cache folder.

    Raises:
        InputError: If the user has none, as in a container without an entry for its user.
    """
    try:
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError as error:
        raise InputError("there is no home folder to keep tokens in: name another by --data-cache") from error
    return Path(caches) / "gpt-data"


def cache_folder(cache_dir: Path, source: str, tokenizer: str, max_tokens: int | None) -> Path:
    """The folder for a source and a tokenizer, named by a hash over all that decides its content.

    Raises:
        InputError: If source or tokenizer are unknown or missing.
    """
    identity = open_source(source, MAX_DOCUMENT_BYTES).identity()
    plan = {**identity, **tokenizer_identity(tokenizer), **Settings(max_tokens).as_plan()}
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()
    return cache_dir / f"{_slug(source)}-{_slug(tokenizer)}-{digest[:12]}"


def open_shards(folder: Path, tokenizer: str | None, tokenizer_files: Path | None) -> Dataset:
    """Open ready shards, and refuse a tokenizer that did not make them.

    Args:
        tokenizer: One of ``gpt_data.tokenizers.KINDS``; None for the shards' own.

    Raises:
        InputError: If shards or tokenizer are missing, damaged or do not fit each other.
    """
    if not (folder / MANIFEST_NAME).exists() and not part_folders(folder):
        return Dataset.open(folder, _vocabulary(folder, tokenizer or "gpt2", tokenizer_files))
    dataset = Dataset.open(folder)
    if tokenizer is None:
        return dataset
    assert dataset.manifest is not None, "it has a manifest"
    made_with, asked = dataset.manifest.plan, tokenizer_identity(tokenizer)
    same = all(made_with.get(name) == value for name, value in asked.items())
    if not same and asked.get("sha256") != dataset.manifest.tokenizer.sha256:
        raise InputError(
            f"{folder} was made with another tokenizer than {tokenizer}: leave --tokenizer out, "
            f"or give {dataset.folder / TOKENIZER_NAME}"
        )
    return dataset


def _vocabulary(folder: Path, tokenizer: str, files: Path | None) -> Vocabulary:
    """What the ids of published shards mean."""
    if tokenizer.startswith("bpe-scratch:"):
        raise InputError(
            f"nothing says how {folder} was made, so --tokenizer must name it: gpt2, bytes or a file"
        )
    if tokenizer == "gpt2" and files is None:
        # the ids are known without the files, which only turning them back to text would need
        return GPT2_VOCABULARY
    built = build_tokenizer(tokenizer, files, ())
    assert built.end_of_text is not None, "build_tokenizer refuses these"
    return Vocabulary(built.vocab_size, built.end_of_text, built.to_json().encode())


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")[-40:]
