"""What would stop the last save stops the run before its first step."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gpt_trainer.checkpoint import CheckpointState, check_writable, find_steps, save_checkpoint, step_bytes
from gpt_trainer.errors import WriteError
from gpt_trainer.model_config import MODEL_PRESETS
from gpt_trainer.parameters import parameter_count

Make = Callable[..., CheckpointState]


def test_a_good_folder_is_created_and_left_empty(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "run", 1000)
    assert list((tmp_path / "a" / "run").iterdir()) == []


def test_too_little_space_is_refused_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(
        WriteError, match=r"run has .* GB free, 1000000000\.00 GB are needed .* free some space"
    ) as e:
        check_writable(tmp_path / "run", 10**18)
    assert e.value.exit_status == 73


def test_a_step_takes_what_is_said(run: Path, make_state: Make) -> None:
    folder = find_steps(run)[0][1]
    taken = sum(path.stat().st_size for path in folder.iterdir())
    assert taken <= step_bytes(parameter_count(make_state(1).model))
    # 124,439,808 parameters, three float32 arrays of each
    assert 0 < step_bytes(parameter_count(MODEL_PRESETS["gpt2-124m"])) - 12 * 124_439_808 < 10**7


@pytest.mark.parametrize("kind", ["file", "below-a-file", "dangling-link", "read-only"])
@pytest.mark.parametrize("action", ["check", "save"])
def test_a_folder_that_cannot_be_written_is_refused_by_name(
    kind: str, action: str, tmp_path: Path, make_state: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    if kind == "dangling-link":
        run.symlink_to(tmp_path / "nowhere")
    elif kind == "read-only":
        fail_creation(monkeypatch)
    else:
        run.touch()
        run = run / "below" if kind == "below-a-file" else run
    with pytest.raises(WriteError, match=r"run.*; (check the folder|free some space)") as caught:
        check_writable(run, 0) if action == "check" else save_checkpoint(run, make_state(1))
    assert caught.value.exit_status == 73
    assert "\n" not in str(caught.value)


def fail_creation(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)


SAVE = """
import runpy, sys
from pathlib import Path
from gpt_trainer.checkpoint import check_writable, save_checkpoint
from gpt_trainer.errors import CommandError
make_state = runpy.run_path(sys.argv[1])["make_state"]
try:
    check_writable(Path(sys.argv[2]), 0)
    save_checkpoint(Path(sys.argv[2]), make_state(int(sys.argv[3])))
except CommandError as error:
    print(error)
    sys.exit(error.exit_status)
"""


def test_the_systems_own_size_limit_leaves_the_old_step(run: Path, child_script: Path) -> None:
    # Python ignores SIGXFSZ, so that a write past the limit fails with EFBIG
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(child_script), str(run), "3"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024)),
        # Python itself would keep half of a module that it compiled, and fail at it ever after
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (73, "")
    assert "cannot save step 3" in done.stdout
    assert os.strerror(errno.EFBIG) in done.stdout
    assert [step for step, _ in find_steps(run)] == [1, 2]
    assert not list((run / "checkpoints").glob(".tmp*"))


MOUNTS = {
    "full": ("mount -t tmpfs -o size=12k none {run}", errno.ENOSPC),
    "read-only": ("mount --bind {run} {run} && mount -o remount,bind,ro {run}", errno.EROFS),
}


@pytest.mark.parametrize("kind", MOUNTS)
def test_a_real_full_or_read_only_disk(kind: str, tmp_path: Path, child_script: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    mount, code = MOUNTS[kind]
    script = f'{mount.format(run=run)} || exit 99; "$@"; status=$?; ls -A {run}/checkpoints >&2; exit $status'
    command = ["unshare", "-rm", "sh", "-c", script, "sh", sys.executable, "-c", SAVE, str(child_script)]
    try:
        done = subprocess.run([*command, str(run), "1"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("unshare is not installed")
    if done.returncode in (1, 99) and "unshare" in done.stderr + "unshare" * (done.returncode == 99):
        pytest.skip("user namespaces are not permitted here")
    assert done.returncode == 73, done.stdout + done.stderr
    assert os.strerror(code) in done.stdout
    assert "step-" not in done.stderr
