from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import bpe_scratch
import pytest
from gpt_data import encoder, pipeline
from gpt_data.dataset import Dataset
from gpt_data.errors import DataError, DataStoppedError, DataWriteError
from gpt_data.prepare import prepare
from gpt_data.progress import Progress
from hypothesis import given, settings
from hypothesis import strategies as st

ContentOf = Callable[[Path], dict[str, bytes]]
SMALL: dict[str, Any] = {"shard_tokens": 700, "workers": 1}
WRITES = ("open", "write", "pwrite", "fsync", "ftruncate", "rename", "replace", "unlink")


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "CHUNK_DOCUMENTS", 5)
    monkeypatch.setattr(pipeline, "COMMIT_SECONDS", 0.0)


def run(corpus: Path, out: Path, **options: Any) -> Dataset:
    return prepare(f"text:{corpus}", "bytes", out, **(SMALL | options))


def documents_of(dataset: Dataset, split: str) -> list[str]:
    stream = getattr(dataset, split)
    tokens = stream.read(0, stream.tokens)
    starts = [*stream.document_starts(0, stream.tokens).tolist(), stream.tokens]
    assert dataset.tokenizer_json is not None
    tokenizer = bpe_scratch.Tokenizer.load(dataset.folder / "tokenizer.json")
    assert all(tokens[start] == dataset.end_of_text for start in starts[:-1])
    return [tokenizer.decode(tokens[a + 1 : b].tolist()) for a, b in pairwise(starts)]


def test_every_document_comes_back_once_and_in_order(corpus: Path, tmp_path: Path) -> None:
    dataset = run(corpus, tmp_path / "out")
    texts = [path.read_text() for path in sorted(corpus.iterdir())]
    held = [texts[1], texts[51]]
    assert documents_of(dataset, "val") == held
    assert documents_of(dataset, "train") == [text for text in texts if text and text not in held]
    assert dataset.manifest is not None
    assert dataset.manifest.tokens("train") == dataset.train.tokens
    assert dataset.manifest.documents("train") == 58
    assert len(dataset.manifest.splits["train"]) > 2


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_and_chunks_do_not_change_the_bytes(
    corpus: Path, tmp_path: Path, content_of: ContentOf, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    run(corpus, tmp_path / "one")
    monkeypatch.setattr(encoder, "CHUNK_DOCUMENTS", workers)
    run(corpus, tmp_path / "many", workers=workers)
    assert content_of(tmp_path / "many") == content_of(tmp_path / "one")


@pytest.mark.parametrize("stops", [[0], [1], [4], [12], [1, 1, 1], [3, 2, 5]], ids=str)
def test_a_stopped_preparation_goes_on_to_the_same_bytes(
    corpus: Path, tmp_path: Path, content_of: ContentOf, stops: list[int]
) -> None:
    run(corpus, tmp_path / "clean")
    out = tmp_path / "out"
    for after in stops:
        answers = iter([False] * after)
        with pytest.raises(DataStoppedError, match="the same command goes on") as caught:
            run(corpus, out, should_stop=lambda answers=answers: next(answers, True))
        assert caught.value.exit_status == 75
        with pytest.raises(DataError, match="not finished"):
            Dataset.open(out)
    run(corpus, out)
    assert content_of(out) == content_of(tmp_path / "clean")


class Crash(BaseException):
    """Stands for the end of the process: from then on no call reaches the disk."""


def break_from(monkeypatch: pytest.MonkeyPatch, call: int, error: BaseException, times: int) -> list[int]:
    """Let the system calls that change a folder fail from number ``call`` on, ``times`` times."""
    seen = [0]

    def wrap(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if real.__name__ == "open" and not args[1] & os.O_CREAT:
                return real(*args, **kwargs)
            seen[0] += 1
            if call <= seen[0] < call + times:
                raise error
            return real(*args, **kwargs)

        return wrapped

    for name in WRITES:
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    return seen


def count_calls(corpus: Path, out: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        seen = break_from(patch, 10**9, Crash(), 1)
        run(corpus, out, shard_tokens=150)
    return seen[0]


def test_a_crash_at_any_call_loses_and_repeats_nothing(
    small_corpus: Path, tmp_path: Path, content_of: ContentOf
) -> None:
    calls = count_calls(small_corpus, tmp_path / "clean")
    assert calls >= 60
    for call in range(1, calls + 1):
        out = tmp_path / str(call)
        with pytest.MonkeyPatch.context() as patch:
            break_from(patch, call, Crash(), 10**9)
            with pytest.raises(Crash):
                run(small_corpus, out, shard_tokens=150)
        run(small_corpus, out, shard_tokens=150)
        assert content_of(out) == content_of(tmp_path / "clean"), f"after a crash at call {call}"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_disk_is_one_line_and_nothing_is_lost(
    small_corpus: Path, tmp_path: Path, content_of: ContentOf, code: int
) -> None:
    calls = count_calls(small_corpus, tmp_path / "clean")
    for call in range(1, calls + 1, 3):
        out = tmp_path / str(call)
        with pytest.MonkeyPatch.context() as patch:
            break_from(patch, call, OSError(code, os.strerror(code)), 10**9)
            # only the note that the files were verified, the last few calls, may fail in silence
            expected = pytest.raises(DataWriteError, match=os.strerror(code))
            with expected if call <= calls - 6 else suppress(DataWriteError):
                run(small_corpus, out, shard_tokens=150)
        run(small_corpus, out, shard_tokens=150)
        assert content_of(out) == content_of(tmp_path / "clean"), f"after an error at call {call}"


CHILD = """
import sys, time
from gpt_data import encoder, pipeline
from gpt_data.prepare import prepare
encoder.CHUNK_DOCUMENTS, pipeline.COMMIT_SECONDS = 1, 0.005
def slow(progress):
    print(progress.documents, flush=True)
    time.sleep(0.003)
source, out, workers = sys.argv[1:]
prepare(f"text:{source}", "bytes", out, shard_tokens=700, workers=int(workers), on_progress=slow)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_at_random_moments_then_go_on(
    corpus: Path, tmp_path: Path, content_of: ContentOf, workers: int
) -> None:
    run(corpus, tmp_path / "clean")
    out = tmp_path / "out"
    command = [sys.executable, "-c", CHILD, str(corpus), str(out), str(workers)]
    for lines in (3, 20):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(lines):
                child.stdout.readline()
            time.sleep(0.001 * lines)
            child.kill()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert content_of(out) == content_of(tmp_path / "clean")


@settings(max_examples=15)
@given(limit=st.integers(1, 1500))
def test_max_tokens_ends_after_a_whole_document(tmp_path_factory: pytest.TempPathFactory, limit: int) -> None:
    folder = tmp_path_factory.mktemp("max")
    (folder / "a.jsonl").write_text("".join(f'{{"text": "{"x" * (i % 40 + 1)}"}}\n' for i in range(60)))
    sizes = [i % 40 + 2 for i in range(60) if i % 50 != 1]
    dataset = prepare(f"text:{folder / 'a.jsonl'}", "bytes", folder / "out", max_tokens=limit, workers=1)
    count = next((n for n in range(1, len(sizes)) if sum(sizes[:n]) >= limit), len(sizes))
    assert dataset.train.tokens == sum(sizes[:count])


def test_other_settings_are_refused_in_a_begun_and_in_a_finished_folder(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataStoppedError):
        run(corpus, out, should_stop=lambda: True)
    for _ in range(2):
        with pytest.raises(DataError, match="begun with another shard_tokens: 700, now 800"):
            run(corpus, out, shard_tokens=800)
        with pytest.raises(DataError, match="another tokenizer: bytes, now bpe-scratch:300"):
            prepare(f"text:{corpus}", "bpe-scratch:300", out, **SMALL)
        run(corpus, out)
    (corpus / "new.txt").write_text("another document")
    with pytest.raises(DataError, match="another files"):
        run(corpus, out)


def test_shards_that_no_journal_knows_are_not_touched(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "train-00000.bin").write_bytes(b"precious")
    with pytest.raises(DataError, match=r"holds train-00000\.bin, which no journal knows"):
        run(corpus, out)
    assert (out / "train-00000.bin").read_bytes() == b"precious"


def test_a_finished_folder_opens_without_a_write(corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        seen = break_from(patch, 1, Crash(), 10**9)
        assert run(corpus, tmp_path / "out").train.tokens
    assert seen == [0]


@pytest.mark.parametrize("text", [None, ""], ids=["no document", "an empty document"])
def test_an_empty_corpus_is_an_error(tmp_path: Path, text: str | None) -> None:
    (tmp_path / "a.jsonl").write_text("" if text is None else '{"text": ""}\n' * 3)
    with pytest.raises(DataError, match=f"source text:{tmp_path / 'a.jsonl'} holds no training text"):
        prepare(f"text:{tmp_path / 'a.jsonl'}", "bytes", tmp_path / "out", workers=1)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_dead_worker_is_an_error_and_the_work_goes_on_later(
    corpus: Path, tmp_path: Path, content_of: ContentOf
) -> None:
    run(corpus, tmp_path / "clean")
    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        for number in workers_of(os.getpid()) if progress.documents > 10 and not killed else ():
            os.kill(number, 9)
            killed.append(number)

    with pytest.raises(DataStoppedError, match="an encoding worker ended with status -9"):
        run(corpus, tmp_path / "out", workers=2, on_progress=kill_one)
    assert len(killed) == 2
    run(corpus, tmp_path / "out", workers=2)
    assert content_of(tmp_path / "out") == content_of(tmp_path / "clean")
    assert list(workers_of(os.getpid())) == []


def workers_of(parent: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if int(status[1]) == parent and b"gpt_data.encode_worker" in command:
            yield int(entry.name)


def test_what_the_callback_raises_ends_it_and_it_can_go_on(
    corpus: Path, tmp_path: Path, content_of: ContentOf
) -> None:
    run(corpus, tmp_path / "clean")

    def stop(progress: Progress) -> None:
        if progress.documents >= 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out", on_progress=stop)
    seen: list[Progress] = []
    run(corpus, tmp_path / "out", on_progress=seen.append)
    assert seen[0].documents >= 20
    assert content_of(tmp_path / "out") == content_of(tmp_path / "clean")


def test_a_damaged_journal_is_named(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataStoppedError):
        run(corpus, out, should_stop=lambda: True)
    for content in (b"", b"[]", b"{}", b'{"version": 1}', b'{"version": 2}', b"\xff"):
        (out / "progress.json").write_bytes(content)
        with pytest.raises(DataError, match=r"progress\.json"):
            run(corpus, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"shard_tokens": 0}, "shard_tokens=0"),
        ({"shard_tokens": 2**31}, "shard_tokens=2147483648"),
        ({"max_document_bytes": 0}, "max_document_bytes=0"),
        ({"workers": 0}, "workers=0"),
    ],
)
def test_bad_settings_are_named(corpus: Path, tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        run(corpus, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_special_text_in_a_document_stays_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a<|endoftext|>b"}\n{"text": "c"}\n')
    dataset = prepare(f"text:{tmp_path / 'a.jsonl'}", "bytes", tmp_path / "out", workers=1)
    assert documents_of(dataset, "train") == ["a<|endoftext|>b"]
