"""A preparation that is stopped, killed or out of space goes on to the same bytes."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gpt_data import pipeline
from gpt_data.dataset import Dataset
from gpt_data.errors import InputError, StoppedError, WriteError
from gpt_data.journal import load_journal
from gpt_data.progress import Progress

ContentOf = Callable[[Path], dict[str, bytes]]
Run = Callable[..., Dataset]
pytestmark = pytest.mark.usefixtures("small_chunks")
WRITES = ("open", "write", "pwrite", "fsync", "ftruncate", "rename", "replace", "unlink")


@pytest.mark.parametrize("stops", [[0], [1], [4], [12], [1, 1, 1], [3, 2, 5]], ids=str)
def test_a_stopped_preparation_goes_on_to_the_same_bytes(
    run: Run,
    corpus: Path,
    tmp_path: Path,
    content_of: ContentOf,
    monkeypatch: pytest.MonkeyPatch,
    stops: list[int],
) -> None:
    # it is the stop that keeps what was done, and not a moment before it
    monkeypatch.setattr(pipeline, "COMMIT_SECONDS", 3600.0)
    run(corpus, tmp_path / "clean")
    out, done = tmp_path / "out", 0
    for after in stops:
        answers = iter([False] * after)
        with pytest.raises(StoppedError, match="the same command goes on") as caught:
            run(corpus, out, should_stop=lambda answers=answers: next(answers, True))
        assert caught.value.exit_status == 75
        done += after
        journal = load_journal(out)
        assert journal is not None
        # a chunk for each answer but the last, and none is done again
        assert journal.next_document >= done
        with pytest.raises(InputError, match="not finished"):
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


def count_calls(run: Run, corpus: Path, out: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        seen = break_from(patch, 10**9, Crash(), 1)
        run(corpus, out, shard_tokens=150)
    return seen[0]


def test_a_crash_at_any_call_loses_and_repeats_nothing(
    run: Run, small_corpus: Path, tmp_path: Path, content_of: ContentOf
) -> None:
    calls = count_calls(run, small_corpus, tmp_path / "clean")
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
    run: Run, small_corpus: Path, tmp_path: Path, content_of: ContentOf, code: int
) -> None:
    calls = count_calls(run, small_corpus, tmp_path / "clean")
    for call in range(1, calls + 1, 3):
        out = tmp_path / str(call)
        with pytest.MonkeyPatch.context() as patch:
            break_from(patch, call, OSError(code, os.strerror(code)), 10**9)
            # only the note that the files were verified, the last few calls, may fail in silence
            expected = pytest.raises(WriteError, match=os.strerror(code))
            with expected if call <= calls - 6 else suppress(WriteError):
                run(small_corpus, out, shard_tokens=150)
        run(small_corpus, out, shard_tokens=150)
        assert content_of(out) == content_of(tmp_path / "clean"), f"after an error at call {call}"


CHILD = """
import sys, time
from gpt_data import encoding, pipeline
from gpt_data.prepare import prepare
encoding.CHUNK_DOCUMENTS, pipeline.COMMIT_SECONDS = 1, 0.005
def slow(progress):
    print(progress.documents, flush=True)
    time.sleep(0.003)
source, out = sys.argv[1:]
prepare(f"text:{source}", "bytes", out, shard_tokens=700, on_progress=slow)
"""


def test_kill_at_random_moments_then_go_on(
    run: Run, corpus: Path, tmp_path: Path, content_of: ContentOf
) -> None:
    run(corpus, tmp_path / "clean")
    out = tmp_path / "out"
    command = [sys.executable, "-c", CHILD, str(corpus), str(out)]
    for lines in (3, 20):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            for _ in range(lines):
                child.stdout.readline()
            time.sleep(0.001 * lines)
            child.kill()
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert content_of(out) == content_of(tmp_path / "clean")


def test_a_finished_folder_opens_without_a_write(run: Run, corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        seen = break_from(patch, 1, Crash(), 10**9)
        assert run(corpus, tmp_path / "out").train.tokens
    assert seen == [0]


def test_what_the_callback_raises_ends_it_and_it_can_go_on(
    run: Run, corpus: Path, tmp_path: Path, content_of: ContentOf
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


def test_a_damaged_journal_is_named(run: Run, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        run(corpus, out, should_stop=lambda: True)
    for content in (b"", b"[]", b"{}", b'{"version": 1}', b'{"version": 2}', b'{"version": 3}', b"\xff"):
        (out / "progress.json").write_bytes(content)
        with pytest.raises(InputError, match=r"progress\.json"):
            run(corpus, out)


def test_any_bit_of_the_journal_counts(run: Run, corpus: Path, tmp_path: Path, content_of: ContentOf) -> None:
    out, draw = tmp_path / "out", random.Random(0)
    answers = iter([False] * 6)
    with pytest.raises(StoppedError):
        run(corpus, out, should_stop=lambda: next(answers, True))
    path = out / "progress.json"
    whole = path.read_bytes()
    for bit in draw.sample(range(8 * len(whole)), 300):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"progress\.json"):
            load_journal(out)
    # one of the first version has no seal
    first = {name: value for name, value in json.loads(whole).items() if name != "sha256"} | {"version": 1}
    path.write_text(json.dumps(first))
    run(corpus, out)
    run(corpus, tmp_path / "clean")
    assert content_of(out) == content_of(tmp_path / "clean")
