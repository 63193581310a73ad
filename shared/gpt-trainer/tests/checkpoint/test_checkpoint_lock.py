"""One process per run: refused while the first lives, taken over as soon as it is dead."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gpt_data.store.lock import FolderLock
from gpt_trainer.checkpoint import CheckpointState, find_steps, save_checkpoint
from gpt_trainer.errors import WriteError

HOLD = """
import sys, time
from pathlib import Path
from gpt_data.store.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of ``tmp_path / "run"``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_is_refused_and_told_who_holds_the_run(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    with pytest.raises(WriteError) as caught:
        FolderLock(tmp_path / "run").acquire()
    assert caught.value.exit_status == 73
    for part in (str(tmp_path / "run"), f"process {holder.pid} on {socket.gethostname()}", "choose another"):
        assert part in str(caught.value)


def test_the_lock_of_a_killed_process_is_taken_over_at_once(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    start = time.monotonic()
    with FolderLock(tmp_path / "run"):
        assert time.monotonic() - start < 1
        assert (tmp_path / "run" / ".lock").exists()


def test_a_living_process_that_holds_no_lock_does_not_matter(tmp_path: Path) -> None:
    # a recycled process id: the file names a process that lives, but nobody holds the lock
    (tmp_path / ".lock").write_text(f'{{"pid": {os.getppid()}, "host": "{socket.gethostname()}"}}\n')
    with FolderLock(tmp_path):
        pass


def test_the_lock_is_free_after_the_block_and_held_within(tmp_path: Path) -> None:
    for _ in range(2):
        with FolderLock(tmp_path), pytest.raises(WriteError, match=f"process {os.getpid()} on"):
            FolderLock(tmp_path).acquire()


def test_a_forked_worker_does_not_keep_the_run(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path).acquire()
    ready, started = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(started, b"!")
        signal.pause()
    assert os.read(ready, 1) == b"!"
    try:
        # the end of this process, as the worker would see it
        lock.release()
        with FolderLock(tmp_path):
            pass
    finally:
        # it would keep the outputs of a test that failed
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(ready)
        os.close(started)


def test_a_full_disk_keeps_nobody_from_locking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # old steps are deleted under a lock, which is what such a disk needs
    def full(*given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with FolderLock(tmp_path), pytest.raises(WriteError, match="in use by another process"):
        FolderLock(tmp_path).acquire()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": "x", "host": 1}', '{"pid": 1}', "\0" * 9999])
def test_a_nonsensical_lock_file_still_refuses(text: str, tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        (tmp_path / ".lock").write_text(text)
        with pytest.raises(WriteError, match="in use by another process"):
            FolderLock(tmp_path).acquire()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(WriteError, match="cannot lock"):
        FolderLock(tmp_path / "run").acquire()
    assert (tmp_path / "victim").read_text() == "precious"


def test_two_saves_into_one_folder_do_not_meet(run: Path, make_state: Callable[..., CheckpointState]) -> None:
    with FolderLock(run / "checkpoints"), pytest.raises(WriteError, match="checkpoints is in use by process"):
        save_checkpoint(run, make_state(3))
    save_checkpoint(run, make_state(3))
    assert [step for step, _ in find_steps(run)] == [1, 2, 3]
