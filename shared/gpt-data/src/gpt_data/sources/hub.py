"""A dataset of the Hugging Face hub, read as a stream.

Code that comes with a dataset is never run: the library refuses such datasets from version 4 on,
which is the oldest that the extra ``gpt-data[hf]`` takes.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NamedTuple

from gpt_data.errors import CommandError, InputError, StoppedError, first_line
from gpt_data.hub import ANSWER_SECONDS, HubBusyError, ask, client
from gpt_data.parts import Part
from gpt_data.sources.base import Document, HoldOut, Source, check_document
from gpt_data.store.json_lines import text_field

HELD_OUT_EVERY = 200
POLL_SECONDS = 0.5

Stream = Callable[[int], Iterator[Mapping[str, Any]]]
"""Opens the records from a number on."""


class HubName(NamedTuple):
    """Which records of the hub: a dataset, a configuration of it (None: its default) and a split."""

    dataset: str
    config: str | None = None
    split: str = "train"


NAMED = {
    "fineweb-edu": HubName("HuggingFaceFW/fineweb-edu", "sample-10BT"),
    "tinystories": HubName("roneneldan/TinyStories"),
}


@dataclass(frozen=True)
class RetryPolicy:
    """How long to go on after a stream has failed.

    Attributes:
        first_wait: Seconds before the first retry; doubled each time.
        longest_wait: Where doubling ends.
        budget: Seconds of waiting in all before giving up; a document that arrives renews it.
    """

    first_wait: float = 1.0
    longest_wait: float = 60.0
    budget: float = 600.0


RETRY = RetryPolicy()


class HubDataset(Source):
    """The records of one split, in the order in which the hub streams them.

    A stream that breaks is opened again at the exact record. When the retry budget is spent the error
    says so, and what was written until then stays valid and can be gone on from.

    Args:
        max_document_bytes: Largest document; a longer one is an error.
        part: The part of the records that is read, as the library itself parts them.
        should_stop: Asked while waiting for a retry; True gives up.
        retry: When to give up; after ten minutes without progress if None.
    """

    def __init__(
        self,
        name: HubName,
        max_document_bytes: int,
        *,
        part: Part | None = None,
        pin: Mapping[str, str] | None = None,
        on_notice: Callable[[str], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
        retry: RetryPolicy | None = None,
        open_stream: Stream | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self.limit = max_document_bytes
        self.part = part
        self.hold_out = HoldOut(self._texts, HELD_OUT_EVERY)
        self.on_notice = on_notice
        self.should_stop = should_stop
        self.retry = retry if retry is not None else RETRY
        self.open_stream = open_stream if open_stream is not None else self._open
        self.sleep = sleep
        self._pin = None if pin is None else dict(pin)

    def identity(self) -> dict[str, Any]:
        """The dataset's name."""
        return {"source": "hf:" + ":".join(part or "" for part in self.name)}

    def pin(self) -> dict[str, str]:
        """The dataset's revision on the hub, so that a later process reads the same records."""
        if self._pin is None:
            self._pin = {"revision": self._revision()}
        return self._pin

    def documents(self, start: int = 0) -> Iterator[Document]:
        """The records from number ``start`` on."""
        return self.hold_out.documents(start)

    def _texts(self, start: int) -> Iterator[str]:
        for number, record in enumerate(self.records(start), start):
            where = f"{self.name.dataset} record {number}"
            yield check_document(text_field(record, where), where, self.limit)

    def records(self, start: int = 0) -> Iterator[Mapping[str, Any]]:
        """The records from number ``start`` on, as they are; a stream that breaks is opened again."""
        waits = Waits(self.retry)
        while True:
            try:
                for record in self.open_stream(start):
                    yield record
                    start += 1
                    waits.renew()
                return
            except (CommandError, GeneratorExit, AttributeError, ImportError):
                # an answer, or a library that is not what we take it for: waiting mends neither
                raise
            except Exception as error:  # noqa: BLE001 - each transport under the library has errors of its own
                self._wait(waits, start, error)

    def _wait(self, waits: Waits, start: int, error: Exception) -> None:
        reason = f"{type(error).__name__}: {first_line(error)}"
        seconds = waits.next()
        if seconds is None:
            raise StoppedError(
                f"the stream of {self.name.dataset} failed at record {start} ({reason}) and stayed so for "
                f"{self.retry.budget:.0f} s; run the same command again to go on from there"
            ) from error
        left = self.retry.budget - waits.spent
        notice = f"stream failed at record {start} ({reason}); again in {seconds:.0f} s, {left:.0f} s left"
        if self.on_notice is not None:
            self.on_notice(notice)
        while seconds > 0:
            if self.should_stop is not None and self.should_stop():
                raise StoppedError(f"stopped while waiting for {self.name.dataset}") from error
            self.sleep(min(seconds, POLL_SECONDS))
            seconds -= POLL_SECONDS

    def _open(self, start: int) -> Iterator[Mapping[str, Any]]:
        datasets = _library()
        revision = self.pin().get("revision")
        try:
            stream = datasets.load_dataset(
                self.name.dataset, self.name.config, split=self.name.split, streaming=True, revision=revision
            )
        except (ValueError, FileNotFoundError) as error:
            # what does not exist, or carries code, will not get better by waiting
            raise InputError(f"source hf:{self.name.dataset}: {first_line(error)}") from error
        if self.part is not None:
            # by files, where the parts divide them, or else by records: then skipping goes before sharing out
            start *= 1 if stream.num_shards % self.part.count == 0 else self.part.count
            share = import_module("datasets.distributed").split_dataset_by_node
            stream = share(stream, rank=self.part.index - 1, world_size=self.part.count)
        return iter(stream.skip(start) if start else stream)

    def _revision(self) -> str:
        waits = Waits(self.retry)
        while True:
            try:
                return ask(lambda hub: str(hub.dataset_info(self.name.dataset, timeout=ANSWER_SECONDS).sha))
            except HubBusyError as error:
                self._wait(waits, 0, error)
            except InputError as error:
                raise InputError(f"source hf:{self.name.dataset}: {error}") from error


class Waits:
    """Doubling waits with jitter, within a budget that progress renews."""

    def __init__(self, policy: RetryPolicy) -> None:
        self.policy = policy
        self.random = random.Random()
        self.renew()

    def renew(self) -> None:
        """Start over, as something has arrived."""
        self.spent = 0.0
        self.step = self.policy.first_wait

    def next(self) -> float | None:
        """Seconds to wait now, or None if the budget is spent."""
        seconds = self.step * self.random.uniform(0.5, 1.0)
        if self.spent + seconds > self.policy.budget:
            return None
        self.spent += seconds
        self.step = min(2 * self.step, self.policy.longest_wait)
        return seconds


def parse_hub_name(text: str) -> HubName:
    """``NAME``, ``NAME:CONFIG`` or ``NAME:CONFIG:SPLIT``; an empty part means the default.

    >>> parse_hub_name("roneneldan/TinyStories::validation")
    HubName(dataset='roneneldan/TinyStories', config=None, split='validation')

    Raises:
        InputError: If there are more parts or no name.
    """
    name, *rest = text.split(":")
    if not name or len(rest) > 2:
        raise InputError(f"source hf:{text} is not hf:NAME[:CONFIG[:SPLIT]]")
    config, split = (*rest, "", "")[:2]
    return HubName(name, config or None, split or "train")


def _library() -> Any:
    client()
    try:
        return import_module("datasets")
    except ImportError as error:
        raise InputError("this source needs the extra gpt-data[hf] (Hugging Face datasets)") from error
