"""A folder of token shards, opened and verified: two streams, a vocabulary and a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from gpt_data.errors import InputError
from gpt_data.journal import JOURNAL_NAME
from gpt_data.manifest import (
    MANIFEST_NAME,
    MAX_TOKENIZER_BYTES,
    SPLITS,
    TOKENIZER_NAME,
    Manifest,
    load_manifest,
)
from gpt_data.mixture import BLOCK, Mixture, mix
from gpt_data.parts import in_order, part_folders
from gpt_data.published import GPT2_VOCABULARY, Vocabulary, open_nanogpt, open_published
from gpt_data.shards import Shard, token_dtype
from gpt_data.store.reading import read_bytes
from gpt_data.stream import TokenStream
from gpt_data.verify import verify


class Dataset:
    """Token shards that are open for reading.

    Attributes:
        folder: Where they are; of parts, the first one's.
        train: Stream of the training split.
        val: Stream of the held-out split; it may be empty.
        manifest: The folder's manifest; None for published shards, which have none.
        vocabulary: What the ids mean.
        fingerprint: sha256 that changes with anything that changes a batch.
        sources: Of a mixture, share and fingerprint of each source; empty for others.
    """

    def __init__(
        self,
        folder: Path,
        streams: tuple[TokenStream | Mixture, TokenStream | Mixture],
        vocabulary: Vocabulary,
        fingerprint: str,
        manifest: Manifest | None = None,
        sources: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.train, self.val = streams
        self.vocabulary = vocabulary
        self.fingerprint = fingerprint
        self.manifest = manifest
        self.sources = sources or {}

    @staticmethod
    def open(folder: Path | str, vocabulary: Vocabulary = GPT2_VOCABULARY) -> Dataset:
        """Open a prepared folder, one that holds the folders of all parts, or published shards.

        Sizes and headers are checked every time; the sha256 of each file once for as long as its
        inode, size and time stay the same.

        Args:
            folder: The folder.
            vocabulary: What the ids mean if there is no manifest to say so.

        Raises:
            InputError: If anything is missing or damaged.
        """
        folder = Path(folder)
        if (folder / MANIFEST_NAME).exists():
            return _open_prepared({folder: load_manifest(folder)})
        if parts := part_folders(folder):
            manifests = {part: load_manifest(part) for part in parts}
            return _open_prepared({part: manifests[part] for part in in_order(folder, manifests)})
        if (folder / JOURNAL_NAME).exists():
            raise InputError(f"{folder} is not finished: run the same gpt-data-prepare command again")
        return Dataset(folder, *open_published(folder, vocabulary))

    @staticmethod
    def open_nanogpt(file: Path | str, vocabulary: Vocabulary = GPT2_VOCABULARY) -> Dataset:
        """Open nanoGPT's ``train.bin``, with ``val.bin`` beside it as the held-out split.

        Args:
            file: Tokens as uint16 without a header.
            vocabulary: What the ids mean.

        Raises:
            InputError: If it is no such file.
        """
        return Dataset(Path(file).parent, *open_nanogpt(Path(file), vocabulary))

    def opening(self, count: int) -> Int32[np.ndarray, " n"]:
        """The first tokens of the held-out split, of a mixture's first source; fewer if there are fewer."""
        val = self.val.streams[0] if isinstance(self.val, Mixture) else self.val
        return val.read(0, min(count, val.tokens))

    def close(self) -> None:
        """Close every shard."""
        self.train.close()
        self.val.close()


def mixed(datasets: Mapping[str, Dataset], weights: Mapping[str, float]) -> Dataset:
    """A mixture of datasets, by what they were asked for as; of the held-out text, of those that have any.

    Raises:
        InputError: If they were made with different tokenizers, or a weight is too small.
    """
    (first, whole), *others = datasets.items()
    for name, other in others:
        if not _same_vocabulary(whole.vocabulary, other.vocabulary):
            raise InputError(f"{name} was made with another tokenizer than {first}: they cannot be mixed")
    streams = {name: _streams(dataset) for name, dataset in datasets.items()}
    train = mix({name: stream for name, (stream, _) in streams.items()}, weights)
    held = {name: stream for name, (_, stream) in streams.items() if stream.tokens}
    val = mix(held, weights) if held else whole.val
    sources = {
        name: {"share": quota / BLOCK, "fingerprint": datasets[name].fingerprint}
        for name, quota in zip(train.names, train.quotas, strict=True)
    }
    digest = hashlib.sha256(json.dumps([*sources.values()]).encode()).hexdigest()
    return Dataset(whole.folder, (train, val), whole.vocabulary, digest, sources=sources)


def _streams(dataset: Dataset) -> tuple[TokenStream, TokenStream]:
    train, val = dataset.train, dataset.val
    assert isinstance(train, TokenStream), "a mixture's sources are none"
    assert isinstance(val, TokenStream), "a mixture's sources are none"
    return train, val


def _same_vocabulary(one: Vocabulary, other: Vocabulary) -> bool:
    known = one.tokenizer_json is not None and other.tokenizer_json is not None
    return one == other if known else one[:2] == other[:2]


def _open_prepared(folders: Mapping[Path, Manifest]) -> Dataset:
    """Open a folder, or those of all parts one after another as if they were one."""
    for folder, manifest in folders.items():
        verify(folder, manifest)
    first, model = next(iter(folders.items()))
    splits = {
        split: tuple(shard for manifest in folders.values() for shard in manifest.splits[split])
        for split in SPLITS
    }
    whole = replace(model, splits=splits)
    vocabulary = Vocabulary(
        model.vocab_size,
        model.end_of_text,
        read_bytes(first / TOKENIZER_NAME, MAX_TOKENIZER_BYTES, follow_link=True),
    )
    train, val = (_open_split(folders, whole, split) for split in SPLITS)
    return Dataset(first, (train, val), vocabulary, whole.fingerprint, whole)


def _open_split(folders: Mapping[Path, Manifest], whole: Manifest, split: str) -> TokenStream:
    places = [(folder, shard) for folder, part in folders.items() for shard in part.splits[split]]
    shards = [Shard(folder / record.data.name) for folder, record in places]
    for shard, (_, record) in zip(shards, places, strict=True):
        want = token_dtype(whole.vocab_size)
        if (shard.tokens, shard.dtype) != (record.tokens, want):
            raise InputError(
                f"{shard.path} holds {shard.tokens} tokens of {shard.dtype}; "
                f"the manifest says {record.tokens} of {want}"
            )
    return TokenStream(
        split,
        shards,
        vocab_size=whole.vocab_size,
        end_of_text=whole.end_of_text,
        documents=[folder / record.offsets.name for folder, record in places],
    )
