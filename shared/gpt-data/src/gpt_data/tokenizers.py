"""Which tokenizer: by a short specification, always as a ``bpe_scratch.Tokenizer``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import bpe_scratch

from gpt_data.errors import InputError
from gpt_data.hub import ANSWER_SECONDS, HubBusyError, ask, client
from gpt_data.published import GPT2_VOCABULARY
from gpt_data.store.reading import sha256_of

SAMPLE_BYTES = 8 * 2**20
"""A tokenizer is trained on the first documents of the source's sample, up to this much text."""
KINDS = ("bytes", "bpe-scratch:VOCAB", "gpt2", "PATH/tokenizer.json")
GPT2_REPOSITORY = "openai-community/gpt2"
GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
SMALLEST_VOCAB = 257


def tokenizer_identity(spec: str) -> dict[str, Any]:
    """What decides the tokenizer, as JSON.

    Raises:
        InputError: If ``spec`` is none of ``KINDS``, or its file is missing.
    """
    if spec in ("bytes", "gpt2"):
        return {"tokenizer": spec}
    kind, _, rest = spec.partition(":")
    if kind == "bpe-scratch":
        return {"tokenizer": f"bpe-scratch:{_vocab_size(rest)}", "sample_bytes": SAMPLE_BYTES}
    path = Path(spec)
    if path.suffix != ".json":
        raise InputError(f"unknown tokenizer {spec!r}; choose one of {', '.join(KINDS)}")
    return {"tokenizer": "file", "sha256": sha256_of(path)}


def build_tokenizer(spec: str, files: Path | None, sample: Iterable[str]) -> bpe_scratch.Tokenizer:
    """Load or train the tokenizer that ``spec`` names.

    Args:
        files: Folder with GPT-2's files, for ``gpt2``; from the hub if None.
        sample: Documents to train on, for ``bpe-scratch``; no more than needed is read.

    Raises:
        InputError: If it cannot be had, or has no end-of-text token to frame documents with.
    """
    tokenizer_identity(spec)
    try:
        tokenizer = _build(spec, files, sample)
    except InputError:
        raise
    except (ValueError, OSError) as error:
        raise InputError(f"tokenizer {spec}: {error}") from error
    if tokenizer.end_of_text is None:
        raise InputError(f"tokenizer {spec} has no token <|endoftext|>, which opens each document")
    return tokenizer


def size_said(spec: str | None, size: int) -> str:
    """A vocabulary's size for people, beside the one that was asked for if a text gave fewer ids.

    >>> size_said("bpe-scratch:50257", 18824), size_said("gpt2", 50257)
    ('18,824 of 50,257 asked for', '50,257')
    """
    kind, _, asked = (spec or "").partition(":")
    fewer = kind == "bpe-scratch" and size < int(asked)
    return f"{size:,} of {int(asked):,} asked for" if fewer else f"{size:,}"


def load_tokenizer(path: Path) -> bpe_scratch.Tokenizer:
    """Load a ``tokenizer.json``.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return bpe_scratch.Tokenizer.load(path)
    except (ValueError, OSError) as error:
        raise InputError(f"cannot read tokenizer {path}: {error}") from error


def take_bytes(documents: Iterable[str], limit: int) -> Iterator[str]:
    """Documents from the front until they make ``limit`` bytes of UTF-8; the last one is cut."""
    for document in documents:
        content = document.encode()
        if len(content) >= limit:
            yield content[:limit].decode(errors="ignore")
            return
        limit -= len(content)
        yield document


def _build(spec: str, files: Path | None, sample: Iterable[str]) -> bpe_scratch.Tokenizer:
    if spec == "bytes":
        return bpe_scratch.Tokenizer.from_bytes()
    if spec == "gpt2":
        return _gpt2(files)
    if spec.startswith("bpe-scratch:"):
        return bpe_scratch.train(take_bytes(sample, SAMPLE_BYTES), _vocab_size(spec.partition(":")[2]))
    return bpe_scratch.Tokenizer.load(Path(spec))


def _gpt2(files: Path | None) -> bpe_scratch.Tokenizer:
    tokenizer = _gpt2_from_folder(files) if files is not None else _gpt2_from_hub()
    size, gpt2 = tokenizer.vocab_size, GPT2_VOCABULARY.size
    if size != gpt2:
        raise InputError(f"{files or GPT2_REPOSITORY}: a vocabulary of {size}, where GPT-2's has {gpt2}")
    return tokenizer


def _gpt2_from_folder(folder: Path) -> bpe_scratch.Tokenizer:
    if not folder.is_dir():
        raise InputError(f"--tokenizer-files {folder}: there is no such folder")
    if files := gpt2_files(folder):
        return bpe_scratch.Tokenizer.from_gpt2(*files)
    if (folder / "tokenizer.json").is_file():
        return bpe_scratch.Tokenizer.load(folder / "tokenizer.json")
    wanted = " or ".join(f"{vocab} with {merges}" for vocab, merges in GPT2_FILES)
    raise InputError(f"{folder} holds neither {wanted} nor tokenizer.json")


def gpt2_files(folder: Path) -> tuple[Path, Path] | None:
    """GPT-2's vocabulary and merges in a folder, by OpenAI's names or Hugging Face's, if both are there."""
    for names in GPT2_FILES:
        vocab, merges = (folder / name for name in names)
        if vocab.is_file() and merges.is_file():
            return vocab, merges
    return None


def _gpt2_from_hub() -> bpe_scratch.Tokenizer:
    try:
        files = _downloaded() or _download()
    except (InputError, HubBusyError) as error:
        advice = "give --tokenizer-files DIR with encoder.json and vocab.bpe"
        raise InputError(f"tokenizer gpt2: {error}; {advice}") from error
    return bpe_scratch.Tokenizer.from_gpt2(*files)


def _downloaded() -> list[Path]:
    """GPT-2's files in the hub's cache, if they are all there: no one has to be asked for them."""
    found = [client().try_to_load_from_cache(GPT2_REPOSITORY, name) for name in GPT2_FILES[1]]
    return [Path(path) for path in found] if all(isinstance(path, str) for path in found) else []


def _download() -> list[Path]:
    # downloading asks six times before it gives up
    ask(lambda hub: hub.model_info(GPT2_REPOSITORY, timeout=ANSWER_SECONDS))
    return ask(lambda hub: [Path(hub.hf_hub_download(GPT2_REPOSITORY, name)) for name in GPT2_FILES[1]])


def _vocab_size(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < SMALLEST_VOCAB:
        asked = f"bpe-scratch:{text}".rstrip(":")
        raise InputError(
            f"tokenizer {asked} needs a vocabulary of at least {SMALLEST_VOCAB}, as in bpe-scratch:4096"
        )
    return int(text)
