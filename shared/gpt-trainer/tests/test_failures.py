"""Every failure is one line that names the cause, an exit status, and nothing lost."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
from gpt_data.dataset import Dataset
from gpt_data.prepare_command import summary
from gpt_data.store.lock import FolderLock
from gpt_trainer.checkpoint import find_steps, load_checkpoint
from gpt_trainer.report.metrics import read_metrics
from gpt_trainer_runs import Capture, Train, pretend_gpu, the_line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--preset=huge"], "unknown preset 'huge'; choose one of cpu-demo"),
        (["--config=none.toml"], "--config: none.toml is missing"),
        (["--resume=nowhere"], "nowhere"),
        (["--resume=."], "holds no checkpoint"),
        (["--init-from=nowhere"], "nowhere is not a folder"),
        (["--data=wiki"], "unknown source 'wiki'"),
        (["--data=text:none.txt"], "none.txt"),
        (["--tokenizer=words"], "unknown tokenizer 'words'"),
        (["--micro-batch=3"], "not a multiple of micro_batch=3"),
        (["--context=24"], "tokens_per_step=64 is not a multiple of context=24"),
        (["--n-head=3"], "d_model=16 is not a multiple of n_head=3"),
        *(
            ([f"--{name}={value}"], f"{name.replace('-', '_')}={value}")
            for name in ("lr", "weight-decay", "beta1", "beta2", "epsilon", "clip-norm", "skip-spikes")
            for value in ("nan", "inf")
        ),
        *(
            ([f"--{name}=nan"], f"{name.replace('-', '_')}=nan")
            for name in ("dropout", "lr-floor", "decay-fraction")
        ),
        (["--learning-rate=1"], "perhaps you meant --lr"),
        (["--batch-size=1"], "perhaps you meant --tokens-per-step or --micro-batch"),
        (["--skip-spikes=0.5"], "skip_spikes=0.5"),
        (["--device=gpu"], "device='gpu'"),
        (["--n-layer=10001"], "n_layer=10001 is above 10000"),
        (["--profile=-1"], "profile=-1 is not in [0, infinity)"),
        *(([f"--patience={value}"], f"patience={value}") for value in ("0.0", "nan")),
        (["--resume"], "--resume: expected one argument"),
        (["--eval-only"], "--eval-only needs a model"),
        *(([f"--{name}={'x' * 300}"], "File name too long") for name in ("init-from", "resume")),
        (["--sample-prompt=\udcff"], "--sample-prompt: lone surrogate U+DCFF at character 0"),
        (["--preset=cpu-demo", "--resume=."], "--preset cpu-demo does not go with --resume"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_input(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture, given: list[str], said: str
) -> None:
    assert train(*flags, *given) == 65
    assert said in the_line(capsys)
    assert not list(tmp_path.glob("runs/*")), "no folder stays behind"


def test_without_a_home_the_cache_is_asked_for(
    train: Train, flags: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    assert train(*flags, "--data=stdlib") == 65
    assert "--data-cache" in the_line(capsys)


def test_a_cache_that_cannot_be_written_is_named_with_its_flag(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert train(*flags, "--data=stdlib", "--tokenizer=bytes", f"--data-cache={tmp_path / 'file'}") == 73
    line = the_line(capsys)
    assert f"cannot write in {tmp_path / 'file'}" in line
    assert line.rstrip().endswith("or choose another folder by --data-cache")


def test_what_is_proposed_behind_a_preparation_trains(
    train: Train, flags: list[str], shards: Path, capsys: Capture
) -> None:
    proposed = shlex.split(summary(Dataset.open(shards)).rpartition("train with ")[2])
    without = [flag for flag in flags if not flag.startswith(("--data=", "--tokenizer="))]
    assert train(*without, *proposed) == 0
    assert "vocabulary 257" in capsys.readouterr().out
    assert train(*flags, "--tokenizer=gpt2") == 65
    assert "leave --tokenizer out" in the_line(capsys)


def test_a_missing_gpu_is_found_before_data_is_prepared(
    train: Train, flags: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt_trainer.gpt2.data.open_data", lambda *given, **named: pytest.fail("too late"))
    assert train(*flags, "--device=gpu") == 65
    assert "device='gpu'" in the_line(capsys)


def test_an_existing_run_is_not_overwritten(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert train(*flags, "--steps=3", "--out=taken") == 0
    before = (tmp_path / "taken" / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert train(*flags, "--out=taken") == 65
    assert "--resume taken" in the_line(capsys)
    assert (tmp_path / "taken" / "metrics.jsonl").read_bytes() == before


def test_a_folder_in_use_is_refused(train: Train, flags: list[str], tmp_path: Path, capsys: Capture) -> None:
    with FolderLock(tmp_path / "busy"):
        assert train(*flags, "--out=busy") == 73
        assert f"in use by process {os.getpid()}" in the_line(capsys)
    assert train(*flags, "--steps=1", "--out=busy") == 0


def test_the_default_folder_is_the_first_free_one(train: Train, flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "runs" / "cpu-demo-1").mkdir(parents=True)
    assert train(*flags, "--steps=1") == 0
    assert [path.name for path in (tmp_path / "runs").iterdir() if find_steps(path)] == ["cpu-demo-2"]


def test_an_output_folder_that_cannot_be_made(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "file").write_text("")
    assert train(*flags, "--out=file/run") == 73
    assert "file/run" in the_line(capsys)


def test_too_little_space_is_found_before_the_first_step(
    train: Train, flags: list[str], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs(".")
    full = os.statvfs_result((*real[:4], 0, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert train(*flags, "--out=full") == 73
    assert "GB are needed for checkpoints" in the_line(capsys)


@pytest.mark.parametrize("overlap", [False, True], ids=["cpu", "gpu-like"])
def test_a_non_finite_gradient_stops_the_run(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    overlap: bool,
) -> None:
    """On a GPU the metrics come one step late: the run still stops within one step."""
    pretend_gpu(monkeypatch, gpu=overlap)
    assert train(*flags, "--out=bad", fault="nan:7") == 70
    said = the_line(capsys)
    assert "step 8" in said
    assert "gradient norm nan" in said
    run = tmp_path / "bad"
    assert find_steps(run)[-1][0] == 6
    load_checkpoint(find_steps(run)[-1][1])
    assert read_metrics(run / "metrics.jsonl")[-1]["step"] == 7
    dump = np.load(run / "non-finite-step-00000008.npz")
    assert dump["tokens"].shape == (4, 16)
    assert int(dump["step"]) == 7
    assert train("--resume=bad") == 0


def test_overlapped_metrics_are_the_same(
    train: Train, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(*flags, "--out=one", "--skip-spikes=1.5", "--steps=40") == 0
    pretend_gpu(monkeypatch, gpu=True)
    assert train(*flags, "--out=two", "--skip-spikes=1.5", "--steps=40") == 0
    one, two = (
        [
            (line["step"], line.get("loss"), line.get("updated"))
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("one", "two")
    )
    assert one == two


def test_a_spike_is_left_out(train: Train, flags: list[str], tmp_path: Path) -> None:
    assert train(*flags, "--out=calm", "--steps=30", "--skip-spikes=20", fault="spike:25") == 0
    found = [line for line in read_metrics(tmp_path / "calm" / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in found if not line["updated"]] == [26]
    assert found[-1]["loss"] < found[0]["loss"]


def test_out_of_memory_says_what_to_lower(
    train: Train, flags: list[str], tmp_path: Path, capsys: Capture
) -> None:
    assert train(*flags, "--out=big", fault="memory:4") == 71
    said = the_line(capsys)
    assert "tried to allocate 20 GiB" in said
    assert "lower --micro-batch" in said
    assert find_steps(tmp_path / "big")[-1][0] == 3


@pytest.mark.parametrize("what", ["metrics", "checkpoint"])
def test_a_full_disk(
    train: Train,
    flags: list[str],
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    """ENOSPC in the middle of the run: the checkpoint before it resumes."""
    name = {"metrics": "pwrite", "checkpoint": "write"}[what]
    real, armed = getattr(os, name), tmp_path / "full" / "checkpoints" / "step-00000006"

    def full(descriptor: int, content: bytes, *position: int) -> int:
        if armed.exists() and len(content) > 10:
            real(descriptor, content[:5], *position)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, content, *position)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, full)
        assert train(*flags, "--out=full") == 73
    assert "No space left on device" in the_line(capsys)
    run = tmp_path / "full"
    assert find_steps(run)[-1][0] == 6
    assert (run / "metrics.jsonl").read_bytes().endswith(b"}\n")
    assert train("--resume=full") == 0
