"""Any change to any file of a step is noticed, and the run falls back to the newest whole one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from gpt_trainer.checkpoint import (
    CheckpointState,
    NewerFormatError,
    load_checkpoint,
    resolve,
    save_checkpoint,
    step_or_newest,
    verify,
)
from gpt_trainer.errors import InputError, WriteError

Make = Callable[..., CheckpointState]
FILES = ["config.json", "model.safetensors", "optimizer.safetensors", "trainer.json"]
FILES += ["tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def step(run: Path) -> Path:
    return resolve(run)


@pytest.mark.parametrize(("kind", "least"), [("flips", 10_000), ("lengths", 7_000)])
def test_every_flipped_bit_and_every_wrong_length_is_noticed(kind: str, least: int, step: Path) -> None:
    child = Path(__file__).with_name("damage_child.py")
    done = subprocess.run([sys.executable, child, kind, step], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["count"] >= least
    assert report["missed"] == []


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_missing_file_is_refused_by_name_and_the_run_falls_back(name: str, run: Path) -> None:
    step = resolve(run)
    (step / name).unlink()
    with pytest.raises(
        InputError, match=rf"refused step-00000002: .*{name} is missing; use another step"
    ) as caught:
        load_checkpoint(step)
    assert caught.value.exit_status == 65
    refused: list[str] = []
    assert step_or_newest(run, load_checkpoint, refused.append).step == 1
    assert refused == [str(caught.value)]


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_file_of_another_step_is_refused(name: str, run: Path, make_state: Make) -> None:
    # a tokenizer and sizes of their own, so that every file differs from step to step
    other = make_state(3)._replace(tokenizer_json=b'{"added_tokens": []}')
    source = save_checkpoint(run, other)
    step = run / "checkpoints" / "step-00000002"
    shutil.copyfile(source / name, step / name)
    with pytest.raises(InputError, match="refused step-00000002"):
        load_checkpoint(step)


def test_a_step_under_the_name_of_another_is_refused(run: Path) -> None:
    checkpoints = run / "checkpoints"
    (checkpoints / "step-00000002").rename(checkpoints / "step-00000003")
    with pytest.raises(InputError, match="written for step 2, but the folder is that of step 3"):
        load_checkpoint(checkpoints / "step-00000003")


def test_a_copy_under_a_free_name_loads(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-00000002", tmp_path / "backup")
    assert load_checkpoint(resolve(tmp_path / "backup")).step == 2


def test_no_whole_step_is_an_error_that_says_so(run: Path) -> None:
    for path in run.glob("checkpoints/*/config.json"):
        path.write_bytes(b"")
    refused: list[str] = []
    with pytest.raises(
        InputError, match=r"2 step\(s\), none of them whole; give another run's folder"
    ) as caught:
        step_or_newest(run, load_checkpoint, refused.append)
    assert caught.value.exit_status == 65
    assert ["step-00000002" in refused[0], "step-00000001" in refused[1]] == [True, True]


def edit_manifest(step: Path, /, **changes: object) -> None:
    path = step / "manifest.json"
    values = json.loads(path.read_bytes()) | changes
    path.write_bytes(json.dumps(values, indent=2).encode() + b"\n")


def test_a_newer_format_is_refused_and_never_replaced(run: Path, make_state: Make) -> None:
    step = resolve(run)
    edit_manifest(step, version=3)
    with pytest.raises(NewerFormatError, match="format version 3, this program reads up to 2; update it"):
        load_checkpoint(step)
    # not damaged: falling back would lose its steps, saving over it the file
    with pytest.raises(NewerFormatError):
        step_or_newest(run, load_checkpoint, pytest.fail)
    with pytest.raises(WriteError, match="format version 3"):
        save_checkpoint(run, make_state(2))


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 0},
        {"version": 1},
        {"version": True},
        {"version": "1"},
        {"version": None},
        {"format": "another"},
        {"step": -2},
        {"step": 2.0},
        {"step": "2"},
        {"files": {}},
        {"files": []},
        {"files": None},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_manifest_that_is_not_ours_is_refused(changes: dict[str, object], step: Path) -> None:
    edit_manifest(step, **changes)
    with pytest.raises(InputError, match=r"refused step-00000002: .*manifest\.json"):
        load_checkpoint(step)


def test_manifest_names_are_never_paths(step: Path, tmp_path: Path) -> None:
    files = json.loads((step / "manifest.json").read_bytes())["files"]
    (tmp_path / "outside.json").write_bytes(b"{}")
    for name in ("../../../outside.json", str(tmp_path / "outside.json"), "sub/x", ""):
        edit_manifest(step, files=files | {name: files["config.json"]})
        with pytest.raises(InputError, match=r"files are .*expected"):
            load_checkpoint(step)


def test_verification_notices_a_change_that_keeps_size_and_time(step: Path) -> None:
    verify(step)
    path = step / "optimizer.safetensors"
    raw, time = bytearray(path.read_bytes()), path.stat().st_mtime_ns
    raw[-3] ^= 4
    path.write_bytes(raw)
    os.utime(path, ns=(time, time))
    with pytest.raises(InputError, match="damaged"):
        verify(step)
