from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gpt_data.errors import InputError, StoppedError, WriteError
from gpt_data.store.lock import FolderLock
from gpt_data.store.strict_json import parse_object
from gpt_data.store.writing import probe_folder, write_atomic

HOLD = """
import sys, time
from pathlib import Path
from gpt_data.store.lock import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_an_atomic_write_flushes_before_and_after_it_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    write_atomic(tmp_path / "a.json", b"{}")
    # file flushed before the rename, folder after it: what a power cut must not be able to reorder
    assert calls == ["write", "fsync", "replace", "fsync"]
    assert (tmp_path / "a.json").read_bytes() == b"{}"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


@pytest.mark.parametrize("failing", ["write", "fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, code: int
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(WriteError, match=f"cannot write {path}: {os.strerror(code)}") as caught:
        write_atomic(path, b"new")
    assert caught.value.exit_status == 73
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_takes_no_writes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(WriteError, match=f"cannot write in {folder}"):
            probe_folder(folder)
    probe_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_second_writer_is_refused_by_name_and_a_dead_one_is_not_waited_for(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(WriteError, match=f"{tmp_path} is in use by process {holder.pid} on "):
            FolderLock(tmp_path).__enter__()
        told: list[str] = []
        with pytest.raises(StoppedError):
            FolderLock(tmp_path, wait=True, should_stop=lambda: bool(told), on_wait=told.append).__enter__()
        assert told == [f"waiting for process {holder.pid} on {os.uname().nodename}, which uses {tmp_path}"]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        # its name may have been longer
        (tmp_path / ".lock").write_text(json.dumps({"pid": holder.pid, "host": "x" * 200}))
        with FolderLock(tmp_path):
            assert json.loads((tmp_path / ".lock").read_bytes())["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("NaN", "NaN is not JSON"),
        ("-Infinity", "-Infinity is not JSON"),
        ("1e999", "'1e999' overflows"),
        ('{"b": 1, "b": 2}', "key 'b' appears twice"),
    ],
)
def test_what_is_json_to_python_alone_is_refused(text: str, message: str) -> None:
    assert parse_object(b'{"a": 1e308}', Path("file")) == {"a": 1e308}
    with pytest.raises(InputError, match=f"file is not valid JSON: {message}"):
        parse_object(f'{{"a": {text}}}'.encode(), Path("file"))
