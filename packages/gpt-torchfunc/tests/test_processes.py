"""A process a device, over gloo: the same losses as one, on the loopback address alone, and no hang."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from gpt_data.prepare import prepare
from gpt_data.stopping import STARTER
from gpt_torchfunc.options import SPEC
from gpt_trainer.checkpoint import find_steps, load_checkpoint
from gpt_trainer.commands import train_main
from gpt_trainer.ranks.torchrun import launch, without_devices
from gpt_trainer.report.metrics import read_metrics
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

PATIENCE = 120.0
LISTENING = "0A"
NOT_FINITE = """
import os
from gpt_torchfunc import backend
from gpt_torchfunc.commands import train
whole, calls = backend.target_weight, []
def weigh(*given):
    calls.append(given)
    return float("nan") if os.environ["RANK"] == "1" and len(calls) == 4 else whole(*given)
backend.target_weight = weigh
train()
"""
"""A training whose gradient is not finite on rank 1 alone, in step 4."""
LAUNCH = (
    "import sys; from gpt_trainer.ranks.torchrun import launch; sys.exit(launch('broken', 2, sys.argv[1:]))"
)
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("".join(f"def f{n}(x):\n    return x * {n}\n" for n in range(400)))
    prepare(f"text:{folder / 'text.txt'}", "bytes", folder / "shards")
    return [
        *("--n-layer=2", "--n-head=2", "--d-model=16", "--context=16", "--device=cpu", "--plain"),
        *(f"--data=shards:{folder / 'shards'}", "--tokenizer=bytes", "--tokens-per-step=256"),
        *("--micro-batch=4", "--steps=50", "--warmup=5", "--lr=0.01", "--save-every=5", "--eval-every=25"),
        *("--eval-rows=16", "--sample-every=0", "--log-every=1", "--dropout=0.1"),
    ]


def run(launcher: list[str], *flags: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """A command in its own processes, with a thread each."""
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *flags],
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until(found: Callable[[], object], what: str) -> None:
    """Wait for something."""
    end = time.monotonic() + PATIENCE
    while not found():
        assert time.monotonic() < end, f"no {what} in {PATIENCE:.0f} s"
        time.sleep(0.05)


def ranks_of(launcher: int) -> dict[int, int]:
    """Process ids by rank, of what torchrun has started."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (folder / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        ranks = [int(item[5:]) for item in environment if item.startswith(b"RANK=")]
        if parent == launcher and ranks:
            found[ranks[0]] = int(folder.name)
    return found


def listening(process: int) -> Iterator[str]:
    """Addresses that a process listens on, in hexadecimal."""
    sockets = set()
    for file in Path(f"/proc/{process}/fd").iterdir():
        try:
            sockets.add(str(file.readlink()))
        except OSError:
            continue
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and f"socket:[{fields[9]}]" in sockets:
                yield fields[1].partition(":")[0]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def test_two_processes_on_the_loopback_take_the_steps_of_one_and_stop_together(
    flags: list[str], tmp_path: Path
) -> None:
    words = ["gpt_torchfunc.train", "--devices=2", "--shard=optimizer", "--out=two"]
    with run(words, *flags, cwd=tmp_path) as process:
        until(lambda: losses(tmp_path / "two"), "first step")
        ranks = ranks_of(process.pid)
        addresses = {address for one in (process.pid, *ranks.values()) for address in listening(one)}
        told = [Path(f"/proc/{rank}/environ").read_bytes().split(b"\0") for rank in ranks.values()]
        os.kill(ranks[1], signal.SIGTERM)
        said = process.communicate(timeout=PATIENCE)[0]
    assert sorted(ranks) == [0, 1]
    assert all(f"{STARTER}={process.pid}".encode() in environment for environment in told)
    assert addresses, "gloo listens somewhere"
    assert addresses <= LOOPBACK
    assert process.returncode == 75, said
    assert "Traceback" not in said
    assert len(losses(tmp_path / "two")) == find_steps(tmp_path / "two")[-1][0] < 50
    assert train_main(SPEC, ["--resume", str(tmp_path / "two")]) == 0
    # all 16 rows at once: dropout masks belong to rows
    assert train_main(SPEC, [*flags, "--micro-batch=16", "--out", str(tmp_path / "one")]) == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


@pytest.mark.parametrize(("status", "told"), [(65, 65), (-signal.SIGKILL, 69)])
def test_the_launcher_gives_the_first_failure_or_that_a_process_is_lost(
    status: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ChildFailedError("toy", {1: ProcessFailure(1, 4711, int(status), "no file")})

    monkeypatch.setattr("torch.distributed.run.run", fail)
    with patch.dict(os.environ):
        assert launch("toy", 2, ["--device=cpu"]) == told


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_stop_together_and_are_saved(
    flags: list[str], tmp_path: Path
) -> None:
    words = ["gpt_torchfunc.train", "--devices=2", "--out=two"]
    endless = ("--steps=100000", "--schedule-steps=50", "--save-every=0")
    with run(words, *flags, *endless, cwd=tmp_path) as process:
        until(lambda: losses(tmp_path / "two"), "first step")
        process.kill()
        # ends when the last process ends that writes there
        said = process.communicate(timeout=PATIENCE)[0]
    assert "Traceback" not in said
    assert len(losses(tmp_path / "two")) == find_steps(tmp_path / "two")[-1][0]


def two_hosts(launcher: str, *flags: str, cwd: Path) -> list[subprocess.Popen[str]]:
    """A process on each of two hosts, both of them this one: by torchrun's agents, or by srun's variables."""
    port, interface = free_port(), next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    shared = {"GLOO_SOCKET_IFNAME": interface}
    if launcher == "torchrun":
        words = ["torch.distributed.run", "--nnodes=2", "--master-addr=localhost", f"--master-port={port}"]
        own = ["-m", "gpt_torchfunc.train", *flags]
        return [run([*words, f"--node-rank={rank}"], *own, cwd=cwd, **shared) for rank in range(2)]
    shared |= {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "2", "SLURM_JOB_ID": "7"}
    shared |= {"SLURM_STEP_NODELIST": "localhost,other", "SLURM_LOCALID": "0", "MASTER_PORT": str(port)}
    start = partial(run, ["gpt_torchfunc.train"], *flags, cwd=cwd, **shared)
    return [start(SLURM_PROCID=str(rank)) for rank in range(2)]


@pytest.mark.parametrize("launcher", [pytest.param("torchrun", marks=pytest.mark.slow), "srun"])
def test_two_hosts_train_one_model_and_end_when_a_process_is_killed(
    launcher: str, flags: list[str], tmp_path: Path
) -> None:
    both = two_hosts(launcher, *flags, "--steps=100000", "--schedule-steps=50", "--out=two", cwd=tmp_path)
    until(lambda: len(losses(tmp_path / "two")) > 6, "step 6")
    os.kill(both[1].pid if launcher == "srun" else ranks_of(both[1].pid)[1], signal.SIGKILL)
    begun = time.monotonic()
    said = [process.communicate(timeout=PATIENCE)[0] for process in both]
    assert time.monotonic() - begun < 30
    assert [process.returncode for process in both] == ([1, 1] if launcher == "torchrun" else [69, -9]), said
    assert "rank 1 is lost" in said[0], said
    assert launcher == "srun" or "exitcode  : 69" in said[0], said
    found = losses(tmp_path / "two")
    steps = (f"--steps={len(found)}", "--schedule-steps=50")
    assert train_main(SPEC, [*flags, *steps, "--out", str(tmp_path / "one")]) == 0
    assert found == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


@pytest.mark.slow
def test_torchrun_goes_on_after_a_process_was_killed(flags: list[str], tmp_path: Path) -> None:
    port = free_port()
    words = ["torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", f"--master-port={port}"]
    with run([*words, "-m", "gpt_torchfunc.train"], *flags, "--out=run", cwd=tmp_path) as process:
        until(lambda: len(losses(tmp_path / "run")) > 6, "step 6")
        os.kill(ranks_of(process.pid)[1], signal.SIGKILL)
        said = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, said
    assert "rank 1 is lost" in said, said
    assert train_main(SPEC, [*flags, "--out", str(tmp_path / "one")]) == 0
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "one"), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "optimizer"])
def test_a_gradient_of_one_process_that_is_not_finite_stops_both_before_the_optimizer(
    shard: str, flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.py").write_text(NOT_FINITE)
    rates = ("--dropout=0", "--eval-every=0", "--save-every=3", f"--shard={shard}")
    command = [sys.executable, "-c", LAUNCH, *flags, *rates, "--out=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 70, done.stdout + done.stderr
    assert done.stderr.count("step 4: loss nan") == 2, done.stderr
    (step, folder), *others = find_steps(tmp_path / "run")
    assert (step, others) == (3, [])
    weights = load_checkpoint(folder).parameters
    kept = np.load(tmp_path / "run" / "non-finite-step-00000004.npz")
    assert kept["norms"].tolist() == [np.linalg.norm(weights[name]) for name in kept["names"]]


def test_devices_are_not_told_twice() -> None:
    assert without_devices(["--devices", "2", "--lr", "1", "--devices=3"]) == ["--lr", "1"]
