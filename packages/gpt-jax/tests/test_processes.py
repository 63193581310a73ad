"""Processes of two devices each, over gloo: the losses of one, on the loopback address alone, and no hang."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from gpt_data.prepare import prepare
from gpt_jax import processes
from gpt_jax.options import SPEC
from gpt_trainer.checkpoint import find_steps, load_checkpoint
from gpt_trainer.commands import train_main
from gpt_trainer.errors import InputError
from gpt_trainer.report.metrics import read_metrics

PATIENCE = 180.0
LISTENING = "0A"
NOT_FINITE = """
import os, sys
from gpt_jax import backend
from gpt_jax.commands import train
whole, calls = backend.target_weight, []
def weigh(*given):
    calls.append(given)
    return float("nan") if os.environ["OMPI_COMM_WORLD_RANK"] == "1" and len(calls) == 4 else whole(*given)
backend.target_weight = weigh
train()
"""
"""A training whose gradient is not finite on rank 1 alone, in step 4; ``mpirun`` has started it."""
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("".join(f"def f{n}(x):\n    return x * {n}\n" for n in range(400)))
    prepare(f"text:{folder / 'text.txt'}", "bytes", folder / "shards")
    return [
        *("--n-layer=1", "--n-head=2", "--d-model=16", "--context=16", "--device=cpu", "--plain"),
        *(f"--data=shards:{folder / 'shards'}", "--tokenizer=bytes", "--tokens-per-step=128"),
        *("--micro-batch=1", "--steps=50", "--warmup=5", "--lr=0.01", "--save-every=5", "--eval-every=25"),
        *("--eval-rows=8", "--sample-every=0", "--log-every=1", "--dropout=0.1"),
    ]


TORCHRUN = {"WORLD_SIZE": "2", "RANK": "{rank}", "LOCAL_RANK": "{rank}"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "{port}"}
SRUN = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "localhost,other"}
SRUN |= {"SLURM_JOB_ID": "7", "SLURM_PROCID": "{rank}", "SLURM_LOCALID": "0", "MASTER_PORT": "{port}"}
"""A task on each of two hosts."""
MPIRUN = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "{rank}", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
MPIRUN |= {"OMPI_COMM_WORLD_LOCAL_RANK": "{rank}", "OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1"}
MPIRUN |= {"OMPI_MCA_ess_base_jobid": "{process}"}


def start(
    folder: Path,
    flags: list[str],
    *more: str,
    command: tuple[str, str] = ("-m", "gpt_jax.train"),
    told: dict[str, str] = TORCHRUN,
) -> list[subprocess.Popen[str]]:
    """Two processes, as a launcher starts them, which tells them who they are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = {"port": free.getsockname()[1], "process": os.getpid()}
    return [
        subprocess.Popen(
            [sys.executable, *command, *flags, *more],
            cwd=folder,
            env=os.environ | {name: value.format(rank=rank, **own) for name, value in told.items()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def until(found: Callable[[], object], what: str) -> None:
    """Wait for something."""
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, f"no {what} in {PATIENCE:.0f} s"
        time.sleep(0.05)


def listening(process: int) -> Iterator[str]:
    """Addresses that a process listens on, in hexadecimal."""
    sockets = {str(file.readlink()) for file in Path(f"/proc/{process}/fd").iterdir()}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in sockets:
                yield fields[1].partition(":")[0]


def children(process: int) -> list[int]:
    """Processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_two_hosts_under_srun_share_all_and_take_the_steps_of_one(flags: list[str], tmp_path: Path) -> None:
    run = tmp_path / "two"
    both = start(tmp_path, flags, "--out=two", "--devices=2", "--shard=all", told=SRUN)
    until(lambda: losses(run), "first step")
    (coordinator,) = children(both[0].pid)
    addresses = {address for one in (coordinator, *(p.pid for p in both)) for address in listening(one)}
    both[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [75, 75], said
    assert addresses, "the coordinator listens somewhere"
    assert addresses <= LOOPBACK
    assert len(losses(run)) == find_steps(run)[-1][0] < 50
    assert train_main(SPEC, ["--resume", str(run)]) == 0
    # all eight rows at once: dropout masks belong to rows
    assert train_main(SPEC, [*flags, "--micro-batch=8", "--out", str(tmp_path / "one")]) == 0
    assert losses(run) == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


def test_a_gradient_of_one_process_that_is_not_finite_stops_both_before_the_optimizer(
    flags: list[str], tmp_path: Path
) -> None:
    rates = ("--dropout=0", "--eval-every=0", "--save-every=3")
    both = start(tmp_path, flags, "--out=run", *rates, command=("-c", NOT_FINITE), told=MPIRUN)
    said = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert [process.returncode for process in both] == [70, 70], said
    assert all("step 4: loss nan" in text for text in said), said
    (step, folder), *others = find_steps(tmp_path / "run")
    assert (step, others) == (3, [])
    weights = load_checkpoint(folder).parameters
    kept = np.load(tmp_path / "run" / "non-finite-step-00000004.npz")
    assert kept["norms"].tolist() == [np.linalg.norm(weights[name]) for name in kept["names"]]


def test_a_port_is_not_shared_with_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "FAREWELL_SECONDS", 0.0)
    other = socket.create_server(("127.0.0.1", 0), reuse_port=True)
    with other, pytest.raises(InputError, match="cannot listen on"):
        processes.Coordinator(f"127.0.0.1:{other.getsockname()[1]}", 2)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "lost"), [(signal.SIGKILL, 0), (signal.SIGKILL, 1), (signal.SIGSTOP, 1)])
def test_a_lost_process_is_named(kind: signal.Signals, lost: int, flags: list[str], tmp_path: Path) -> None:
    """JAX by itself aborts all others when process 0 is killed, and waits 100 seconds for any other."""
    both = start(tmp_path, flags, "--out=run", "--steps=100000")
    until(lambda: len(losses(tmp_path / "run")) > 6, "step 6")
    both[lost].send_signal(kind)
    begun = time.monotonic()
    said = both[1 - lost].communicate(timeout=PATIENCE)[0]
    both[lost].kill()
    both[lost].communicate(timeout=PATIENCE)
    assert both[1 - lost].returncode == 69, said
    assert f"rank {lost} is lost" in said
    # nor does what outlives rank 0 hold its output, for whose end a launcher waits
    assert time.monotonic() - begun < (15 if kind == signal.SIGKILL else 30)
    assert find_steps(tmp_path / "run"), "the last checkpoint is gone"
