"""A preparation that is stopped, killed or out of space goes on to the same bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import bpe_scratch
import pytest
from gpt_data.dataset import Dataset
from gpt_data.encode_worker import write_frame
from gpt_data.errors import InputError, StoppedError, WriteError
from gpt_data.progress import Progress

ContentOf = Callable[[Path], dict[str, bytes]]
Run = Callable[..., Dataset]
pytestmark = pytest.mark.usefixtures("small_chunks")
WRITES = ("open", "write", "pwrite", "fsync", "ftruncate", "rename", "replace", "unlink")


@pytest.mark.parametrize("stops", [[0], [1], [4], [12], [1, 1, 1], [3, 2, 5]], ids=str)
def test_a_stopped_preparation_goes_on_to_the_same_bytes(
    run: Run, corpus: Path, tmp_path: Path, content_of: ContentOf, stops: list[int]
) -> None:
    run(corpus, tmp_path / "clean")
    out = tmp_path / "out"
    for after in stops:
        answers = iter([False] * after)
        with pytest.raises(StoppedError, match="the same command goes on") as caught:
            run(corpus, out, should_stop=lambda answers=answers: next(answers, True))
        assert caught.value.exit_status == 75
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
    run: Run, corpus: Path, tmp_path: Path, content_of: ContentOf, workers: int
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


def test_a_finished_folder_opens_without_a_write(run: Run, corpus: Path, tmp_path: Path) -> None:
    run(corpus, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        seen = break_from(patch, 1, Crash(), 10**9)
        assert run(corpus, tmp_path / "out").train.tokens
    assert seen == [0]


def test_a_dead_worker_is_an_error_and_the_work_goes_on_later(
    run: Run, corpus: Path, tmp_path: Path, content_of: ContentOf
) -> None:
    run(corpus, tmp_path / "clean")
    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        for number in workers_of(os.getpid()) if progress.documents > 10 and not killed else ():
            os.kill(number, 9)
            killed.append(number)

    with pytest.raises(StoppedError, match="an encoding worker ended with status -9"):
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
    for content in (b"", b"[]", b"{}", b'{"version": 1}', b'{"version": 2}', b"\xff"):
        (out / "progress.json").write_bytes(content)
        with pytest.raises(InputError, match=r"progress\.json"):
            run(corpus, out)


def test_a_worker_whose_parent_is_gone_ends_without_a_word(tmp_path: Path) -> None:
    """The parent was killed while a document was encoded: nobody reads the answer."""
    bpe_scratch.Tokenizer.from_bytes().save(tmp_path / "tokenizer.json")
    command = [sys.executable, "-m", "gpt_data.encode_worker", str(tmp_path / "tokenizer.json")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        worker.stdout.close()
        # more than a pipe holds
        write_frame(worker.stdin, json.dumps(["x" * 2**20]).encode())
        worker.stdin.close()
        assert worker.stderr is not None
        assert worker.stderr.read() == b""
    assert worker.returncode == -signal.SIGPIPE
