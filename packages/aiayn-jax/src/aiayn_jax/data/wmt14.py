"""WMT 2014, German and English, streamed from the Hugging Face hub through ``datasets``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from gpt_data.errors import InputError
from gpt_data.sources.hub import HubDataset, HubName, RetryPolicy

from aiayn_jax.data.pairs import PairCollector, TextPairs

DATASET, CONFIG = "wmt/wmt14", "de-en"
SPLITS = {"train": "train", "val": "validation", "test": "test"}
FIELD = "translation"
# who has no network should hear of it soon; a stream that has begun renews its budget
PATIENCE = RetryPolicy(first_wait=1.0, longest_wait=10.0, budget=20.0)
RECORD_BYTES = 1 << 20


def stream_pairs(
    part: str,
    languages: tuple[str, str],
    *,
    max_pairs: int | None,
    pin: Mapping[str, str] | None = None,
    on_notice: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    dataset: str = DATASET,
    retry: RetryPolicy = PATIENCE,
) -> tuple[TextPairs, dict[str, str]]:
    """One part of WMT 2014.

    Returns:
        The pairs, and what pins the revision that they are from.

    Raises:
        InputError: If the hub does not answer, or a record is not a pair.
    """
    config = CONFIG if dataset == DATASET else None
    name = HubName(dataset, config, SPLITS[part])
    stream = HubDataset(
        name, RECORD_BYTES, pin=pin, on_notice=on_notice, should_stop=should_stop, retry=retry
    )
    collector = PairCollector("record")
    for number, record in enumerate(islice(stream.records(), max_pairs), start=1):
        collector.add(number, *_sentences(record, languages, f"{dataset} {part} record {number}"))
    return collector.finish(f"{dataset} {part}"), stream.pin()


def _sentences(record: Mapping[str, Any], languages: tuple[str, str], where: str) -> tuple[str, str]:
    pair = record.get(FIELD)
    if not isinstance(pair, Mapping) or not all(isinstance(pair.get(name), str) for name in languages):
        wanted = " and ".join(languages)
        raise InputError(f"{where} has no {FIELD!r} with {wanted}; it has {sorted(record)}")
    source, target = (str(pair[name]) for name in languages)
    # a sentence is one line, here as in files
    return source.replace("\n", " "), target.replace("\n", " ")
