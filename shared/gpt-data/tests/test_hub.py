from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bpe_scratch
import pytest
from gpt_data.errors import InputError, StoppedError
from gpt_data.prepare import prepare
from gpt_data.sources import open_source
from gpt_data.sources.hub import HubDataset, HubName, RetryPolicy, parse_hub_name
from gpt_data.tokenizers import build_tokenizer

datasets = pytest.importorskip("datasets")
huggingface_hub = pytest.importorskip("huggingface_hub")
# the library opens event loops and files that it leaves to the collector
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TEXTS = [f"document {i} " + "word " * (i % 7) for i in range(300)]
LIMIT = 2**20


@pytest.fixture(params=["jsonl", "parquet"])
def hub_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A dataset on the disk, in two files, as the hub would hold it."""
    folder = tmp_path / "dataset"
    folder.mkdir()
    for part, texts in enumerate((TEXTS[:120], TEXTS[120:])):
        rows = [{"text": text, "id": i} for i, text in enumerate(texts)]
        path = folder / f"train-{part:05d}.{request.param}"
        if request.param == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            datasets.Dataset.from_list(rows).to_parquet(path)
    return folder


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def collect(source: HubDataset, start: int = 0) -> list[str]:
    return [document.text for document in source.documents(start)]


@pytest.mark.parametrize("start", [0, 1, 2, 119, 120, 121, 299, 300])
def test_a_stream_starts_at_any_document(hub_folder: Path, start: int) -> None:
    source = HubDataset(HubName(str(hub_folder)), LIMIT, pin={})
    assert collect(source, start) == TEXTS[start:]
    held = [i for i, document in enumerate(source.documents()) if document.split == "val"]
    assert held == [1, 201]


def test_streaming_and_remote_code(hub_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    real = datasets.load_dataset

    def record(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return real(*args, **options)

    monkeypatch.setattr(datasets, "load_dataset", record)
    assert collect(HubDataset(HubName(str(hub_folder)), LIMIT, pin={})) == TEXTS
    # once to see that there are enough to hold out single ones, once to read them
    assert [call["streaming"] for call in calls] == [True, True]
    assert not any("trust_remote_code" in call for call in calls)


class Flaky:
    """Stands for ``datasets.load_dataset``: its streams break after some records, as often as told."""

    def __init__(self, real: Callable[..., Any], breaks: list[int], error: Exception) -> None:
        self.real, self.breaks, self.error = real, breaks, error
        self.opened: list[int] = []

    def __call__(self, *args: Any, **options: Any) -> Any:
        return FlakyStream(self, self.real(*args, **options), 0)


class FlakyStream:
    def __init__(self, owner: Flaky, stream: Any, skipped: int) -> None:
        self.owner, self.stream, self.skipped = owner, stream, skipped

    def skip(self, count: int) -> FlakyStream:
        return FlakyStream(self.owner, self.stream.skip(count), count)

    def __iter__(self) -> Iterator[Any]:
        self.owner.opened.append(self.skipped)
        left = self.owner.breaks.pop(0) if self.owner.breaks else None
        for record in self.stream:
            if left == 0:
                raise self.owner.error
            left = None if left is None else left - 1
            yield record


ERRORS = [
    ConnectionResetError("peer"),
    TimeoutError(),
    ValueError("503 Service Unavailable"),
    EOFError("cut\nshort"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_stream_that_breaks_goes_on_at_the_exact_document(
    hub_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    flaky = Flaky(datasets.load_dataset, [5, 0, 0, 130, 1], error)
    monkeypatch.setattr(datasets, "load_dataset", flaky)
    notices: list[str] = []
    waited: list[float] = []
    source = HubDataset(
        HubName(str(hub_folder)), LIMIT, pin={}, on_notice=notices.append, sleep=waited.append
    )
    assert [record["text"] for record in source.records()] == TEXTS
    assert flaky.opened == [0, 5, 5, 5, 135, 136]
    assert len(notices) == 5
    assert type(error).__name__ in notices[0]
    assert "failed at record 5" in notices[0]
    assert "s left" in notices[0]
    assert all("\n" not in notice for notice in notices)
    # the wait doubles while nothing arrives and starts over after a record
    assert 0.5 <= waited[0] <= 1.0


def test_waits_double_up_to_the_cap_and_end_with_the_budget() -> None:
    waited: list[float] = []
    starts: list[int] = []

    def broken(start: int) -> Iterator[dict[str, str]]:
        starts.append(start)
        raise ConnectionError("down")

    policy = RetryPolicy(first_wait=1.0, longest_wait=8.0, budget=60.0)
    source = HubDataset(HubName("a/b"), LIMIT, pin={}, retry=policy, open_stream=broken, sleep=waited.append)
    with pytest.raises(
        StoppedError, match=r"a/b failed at record 0 \(ConnectionError: down\).*60 s"
    ) as caught:
        collect(source)
    assert caught.value.exit_status == 75
    assert 30 < sum(waited) <= 60
    assert max(waited) <= 0.5
    assert 6 < len(starts) < 30


def test_a_record_that_arrives_renews_the_budget() -> None:
    def hourly(start: int) -> Iterator[dict[str, str]]:
        if start < 40:
            yield {"text": f"{start}"}
            raise ConnectionError("down")

    waited: list[float] = []
    policy = RetryPolicy(first_wait=1.0, longest_wait=8.0, budget=2.0)
    source = HubDataset(HubName("a/b"), LIMIT, pin={}, retry=policy, open_stream=hourly, sleep=waited.append)
    assert [record["text"] for record in source.records()] == [f"{start}" for start in range(40)]
    assert sum(waited) > 10 * policy.budget


def test_a_stop_is_heard_while_waiting() -> None:
    asked = threading.Event()

    def broken(start: int) -> Iterator[dict[str, str]]:
        raise ConnectionError("down")

    source = HubDataset(
        HubName("a/b"),
        LIMIT,
        pin={},
        open_stream=broken,
        should_stop=asked.is_set,
        sleep=lambda s: asked.set(),
    )
    with pytest.raises(StoppedError, match="stopped while waiting for a/b"):
        collect(source)


def test_what_was_written_before_giving_up_is_gone_on_with(
    hub_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content_of: Callable[[Path], dict[str, bytes]],
) -> None:
    from gpt_data import encoding
    from gpt_data import prepare as preparing
    from gpt_data.sources import hub

    def open_hub(spec: str, limit: int, **options: Any) -> HubDataset:
        return HubDataset(HubName(str(hub_folder)), limit, **(options | {"pin": {}}))

    monkeypatch.setattr(encoding, "CHUNK_DOCUMENTS", 10)
    monkeypatch.setattr(hub, "HELD_OUT_EVERY", 20)
    monkeypatch.setattr(preparing, "open_source", open_hub)
    real = datasets.load_dataset
    options: dict[str, Any] = {"shard_tokens": 2000}
    prepare(f"hf:{hub_folder}", "bytes", tmp_path / "clean", **options)
    monkeypatch.setattr(hub, "POLL_SECONDS", 10.0)
    monkeypatch.setattr(hub, "RETRY", RetryPolicy(0.001, 0.001, 0.01))
    # good for some records, then down for good; the first stream only tells that there are more than 20
    for good in ([1000, 47], [160]):
        flaky = Flaky(real, good + [0] * 1000, ConnectionError("gone"))
        monkeypatch.setattr(datasets, "load_dataset", flaky)
        with pytest.raises(StoppedError, match="run the same command again"):
            prepare(f"hf:{hub_folder}", "bytes", tmp_path / "out", **options)
    assert flaky.opened[0] == 40
    monkeypatch.setattr(datasets, "load_dataset", real)
    prepare(f"hf:{hub_folder}", "bytes", tmp_path / "out", **options)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "clean")


def test_what_waiting_cannot_mend_is_said_at_once(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name in (HubName(str(empty)), HubName(str(tmp_path / "dataset"), None, "nosplit")):
        (tmp_path / "dataset").mkdir(exist_ok=True)
        (tmp_path / "dataset" / "train.jsonl").write_text('{"text": "a"}\n')
        source = HubDataset(name, LIMIT, pin={}, sleep=lambda seconds: pytest.fail("it waited"))
        with pytest.raises(InputError, match=f"source hf:{name.dataset}") as caught:
            collect(source)
        assert caught.value.exit_status == 65


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"content": "a", "n": 1}, "record 0 has no field 'text'; it has 'content', 'n'"),
        ({"text": None}, "record 0: field 'text' is null, expected a string"),
        ({"text": "a" * (LIMIT + 1)}, f"record 0 is longer than {LIMIT} bytes"),
    ],
)
def test_a_record_without_usable_text_is_named(record: dict[str, Any], message: str) -> None:
    source = HubDataset(HubName("a/b"), LIMIT, pin={}, open_stream=lambda start: iter([record][start:]))
    with pytest.raises(InputError, match=message):
        collect(source)


class Api:
    """Stands for the hub: gives what it is told to, or raises it."""

    def __init__(self, answers: list[Any]) -> None:
        self.answers, self.asked = answers, []

    def __call__(self) -> Api:
        return self

    def dataset_info(self, name: str, timeout: float) -> Any:
        self.asked.append(name)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return type("Info", (), {"sha": answer})()

    model_info = dataset_info


def http_error(status: int, kind: str = "HfHubHTTPError") -> Exception:
    error: Exception = getattr(huggingface_hub.errors, kind)(
        f"status {status}",
        response=type("Response", (), {"status_code": status, "headers": {}, "request": None})(),
    )
    return error


def test_the_revision_is_asked_for_until_the_hub_can_answer_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api([http_error(503), http_error(429), "abc123"])
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    source = HubDataset(HubName("some/set"), LIMIT, sleep=lambda seconds: None)
    assert source.pin() == source.pin() == {"revision": "abc123"}
    assert api.asked == ["some/set"] * 3
    opened: list[dict[str, Any]] = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: (opened.append(k), iter(()))[1])
    assert collect(HubDataset(HubName("some/set"), LIMIT, pin={"revision": "old"})) == []
    assert opened[0]["revision"] == "old"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ConnectionError("Name or service not known"),
            r"the hub does not answer \(Name or service not known\)",
        ),
        (TimeoutError(), r"the hub does not answer \(TimeoutError\)"),
        (http_error(404, "RepositoryNotFoundError"), "the hub refuses: status 404"),
        (http_error(403, "GatedRepoError"), "the hub refuses: status 403"),
        (ValueError("Repo id must be in the form"), "Repo id must be in the form"),
    ],
)
def test_a_hub_that_is_not_there_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception, message: str
) -> None:
    api = Api([error, error])
    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    source = HubDataset(HubName("some/set"), LIMIT, sleep=lambda seconds: pytest.fail("it waited"))
    with pytest.raises(InputError, match=f"source hf:some/set: {message}") as caught:
        source.pin()
    assert caught.value.exit_status == 65
    with pytest.raises(InputError, match=f"tokenizer gpt2: {message}; give --tokenizer-files"):
        build_tokenizer("gpt2", None, ())
    assert api.asked == ["some/set", "openai-community/gpt2"]


def test_the_hubs_client_is_quiet_in_a_fresh_process() -> None:
    code = "import logging; from gpt_data.hub import client; client(); "
    code += "print(logging.getLogger('huggingface_hub').level)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{logging.ERROR}\n", "")


def test_gpt2s_files_in_the_hubs_cache_are_taken_without_a_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = bpe_scratch.Tokenizer.from_bytes()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("the hub was asked"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, name: str(tmp_path / name))
    monkeypatch.setattr(bpe_scratch.Tokenizer, "from_gpt2", lambda *paths: (found.extend(paths), made)[1])
    found: list[Path] = []
    with pytest.raises(InputError, match="a vocabulary of 257, where GPT-2's has 50257"):
        build_tokenizer("gpt2", None, ())
    assert found == [tmp_path / "vocab.json", tmp_path / "merges.txt"]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b", HubName("a/b", None, "train")),
        ("a/b:c", HubName("a/b", "c", "train")),
        ("a/b:c:d", HubName("a/b", "c", "d")),
        ("a/b::d", HubName("a/b", None, "d")),
    ],
)
def test_names(text: str, name: HubName) -> None:
    assert parse_hub_name(text) == name


def test_the_named_sources() -> None:
    fineweb, stories = open_source("fineweb-edu", LIMIT), open_source("tinystories", LIMIT)
    assert fineweb.identity() == {"source": "hf:HuggingFaceFW/fineweb-edu:sample-10BT:train"}
    assert stories.identity() == {"source": "hf:roneneldan/TinyStories::train"}
