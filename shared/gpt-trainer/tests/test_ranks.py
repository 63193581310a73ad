"""Several processes of a run: what they agree on, and what becomes of all when one is lost."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from gpt_data.stopping import StopFlag
from gpt_trainer.errors import CommandError, InputError, PeerLostError, StoppedError
from gpt_trainer.gpt2.cut import Cut, cut_rows
from gpt_trainer.gpt2.settings import BatchSection, TrainConfig
from gpt_trainer.model_config import ModelSizes
from gpt_trainer.ranks import watch
from gpt_trainer.ranks.peers import Alone, Peers
from gpt_trainer.ranks.place import LOOPBACK, Meeting, Place, find_meeting, first_host
from gpt_trainer.ranks.torchrun import launch

TORCHRUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}
TORCHRUN |= {"TORCHELASTIC_RESTART_COUNT": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}
SRUN = {"SLURM_STEP_NUM_TASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "123456"}
SRUN |= {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[07-08]", "SLURM_STEP_ID": "0"}


class Table:
    """The store of processes that are threads."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.changed = threading.Condition()
        self.gone = False

    def set(self, key: str, value: bytes) -> None:
        with self.changed:
            self._answer()
            self.values[key] = value
            self.changed.notify_all()

    def get(self, key: str, seconds: float) -> bytes | None:
        with self.changed:
            self._answer()
            self.changed.wait_for(lambda: key in self.values, seconds)
            return self.values.get(key)

    def delete(self, key: str) -> None:
        with self.changed:
            self.values.pop(key, None)

    def _answer(self) -> None:
        if self.gone:
            raise ConnectionError("closed")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[CommandError]]:
    """A second becomes a twentieth; instead of ending the process the watch leaves its verdict."""
    ended: list[CommandError] = []
    for name in ("POLL_SECONDS", "BEAT_SECONDS", "SILENCE_SECONDS", "ALARM_SECONDS", "GRACE_SECONDS"):
        monkeypatch.setattr(watch, name, getattr(watch, name) / 20)
    monkeypatch.setattr(watch.Watch, "_exit", lambda _, verdict: ended.append(verdict))
    return ended


def together(world: int, work: Callable[[Peers], Any], table: Table | None = None) -> list[Any]:
    """What the work gives in each of several processes, or the error that it ended with."""
    shared = table or Table()

    def one(rank: int) -> Any:
        try:
            with Peers(Place(rank, world, rank), lambda: shared) as peers:
                return work(peers)
        except Exception as error:  # noqa: BLE001 - what it ended with is what is looked at
            return error

    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(one, range(world)))


@pytest.mark.parametrize("world", [2, 3])
def test_gather_gives_everyone_everyones_value_in_the_order_of_ranks(world: int) -> None:
    table = Table()

    def work(peers: Peers) -> list[Any]:
        rank = peers.place.rank
        return [
            peers.gather([rank, "x" * rank], "a"),
            peers.first(f"of {rank}", "b"),
            peers.any(rank == world - 1, "c"),
            peers.any(False, "d"),
        ]

    want = [[[rank, "x" * rank] for rank in range(world)], "of 0", True, False]
    assert together(world, work, table) == [want] * world
    # nothing is left but the last meeting and the signs of life
    assert [key for key in table.values if key.startswith("gather")] == ["gather/5/all"]


def test_processes_tell_each_other_of_numbers_that_are_not_finite() -> None:
    # a validation loss of NaN is to end the run as such, and not as a value that JSON does not have
    for told in together(2, lambda peers: peers.gather([math.nan, -math.inf], "the loss")):
        assert [math.isnan(loss) and low == -math.inf for loss, low in told] == [True, True]


def test_one_process_alone_agrees_with_itself() -> None:
    with Alone() as peers:
        assert (peers.gather(3, "a"), peers.first("x", "b"), peers.any(True, "c")) == ([3], "x", True)
        assert peers.agreed is peers.stop
        peers.refuse_difference({"lr": 1}, "config")


def test_a_signal_to_one_is_heard_by_all_at_the_same_question() -> None:
    def work(peers: Peers) -> int:
        for question in range(100):
            if peers.place.rank == 1 and question == 7:
                peers.stop.received = signal.SIGTERM
            if peers.agreed():
                return question
        return -1

    assert together(3, work) == [7, 7, 7]


def test_processes_that_differ_are_refused_by_name_on_every_rank() -> None:
    def work(peers: Peers) -> None:
        peers.refuse_difference({"seed": 0, "lr": 0.1 if peers.place.rank == 2 else 0.2}, "config")

    errors = together(3, work)
    assert [type(error) for error in errors] == [InputError] * 3
    assert {str(error) for error in errors} == {
        "rank 2 differs from rank 0 in config: lr is 0.1 there and 0.2 on rank 0"
    }


@pytest.fixture(scope="module")
def ended() -> Iterator[int]:
    """A process of this machine that has ended; nobody has asked for its status yet."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


@pytest.mark.parametrize(("lost", "killed"), [(0, False), (1, False), (1, True)])
def test_a_process_that_falls_silent_is_named_and_the_others_end(
    lost: int, killed: bool, ended: int, quick: list[CommandError], monkeypatch: pytest.MonkeyPatch
) -> None:
    if killed:
        monkeypatch.setattr(watch, "SILENCE_SECONDS", 60.0)
    started = time.monotonic()
    end = threading.Event()

    def work(peers: Peers) -> None:
        if peers.place.rank == lost:
            # as after kill -9: no sign of life, and it never comes
            peers._watch._beat = lambda count: None  # type: ignore[method-assign]
            if killed:
                last = watch.Sign(1, 1, False, watch.this_machine(), ended)
                peers._store.set(f"sign/{lost}", json.dumps(last).encode())
            peers.gather(0, "before")
            end.wait(10)
            return
        peers.gather(0, "before")
        time.sleep(0.2)
        try:
            peers.gather(0, "step 5")
        finally:
            end.set()

    errors = together(2, work)
    assert isinstance(errors[1 - lost], PeerLostError)
    assert str(errors[1 - lost]).startswith(f"rank {lost} is lost: no sign of life for ")
    assert time.monotonic() - started < 5.0


def test_who_is_silent_for_longer_than_the_patience_is_lost() -> None:
    table, its = Table(), watch.Seen()
    its.take(watch.Sign(1, 0, True, "", 0))
    its.alive -= 3.0
    watch.Watch(Place(0, 2, 0), table, StopFlag(), lambda: 2.0)._judge(1, its)
    assert b"rank 1 is lost: no sign of life for 3 s" in table.values[watch.VERDICT]


def test_where_no_machine_is_told_nobody_is_known_to_be_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "this_machine", lambda: "")
    assert not watch.is_gone(watch.Sign(1, 0, False, "", 2**30))


@pytest.mark.parametrize(("alarm", "seen"), [(False, [1]), (True, [1, 2])])
def test_all_are_looked_at_once_a_collective_has_failed(alarm: bool, seen: list[int]) -> None:
    table, others = Table(), {rank: watch.Seen() for rank in (1, 2)}
    for rank in others:
        table.set(f"sign/{rank}", json.dumps(watch.Sign(1, 0, False, "", 0)).encode())
    first = watch.Watch(Place(0, 3, 0), table, StopFlag(), lambda: 600.0)
    first._alarm = alarm
    first._look(others)
    assert [rank for rank, its in others.items() if its.sign is not None] == seen


def test_one_that_does_not_come_on_is_named_and_ended(quick: list[CommandError]) -> None:

    def work(peers: Peers) -> None:
        peers.patience = 0.6
        peers.gather(0, "before")
        while peers.place.rank == 1 and not quick:
            time.sleep(0.05)
        peers.gather(0, "step 5")

    errors = together(3, work)
    assert {str(error).partition(";")[0] for error in errors} == {"rank 1 hangs: it has not come on for 1 s"}
    # who does not end by itself is ended
    assert {str(error).partition(":")[0] for error in quick} == {"rank 1 hangs"}


def test_one_that_waits_for_another_does_not_hang(quick: list[CommandError]) -> None:
    def work(peers: Peers) -> list[int]:
        peers.patience = 0.5
        until = time.monotonic() + 1.5
        # whoever prepares data asks whether to stop, again and again
        while peers.place.rank == 1 and time.monotonic() < until:
            peers.stop()
            time.sleep(0.02)
        return peers.gather(peers.place.rank, "step 5")

    assert together(2, work) == [[0, 1], [0, 1]]


def test_the_error_of_one_ends_the_others_with_its_words(quick: list[CommandError]) -> None:
    def work(peers: Peers) -> None:
        if peers.place.rank == 1:
            raise InputError("shard 3 is damaged")
        peers.gather(0, "step 5")

    first, second, third = together(3, work)
    assert isinstance(second, InputError)
    for error in (first, third):
        assert isinstance(error, PeerLostError)
        assert str(error).startswith("rank 1 ended: shard 3 is damaged; what was saved is as it was")


def test_one_that_was_asked_to_stop_before_the_first_step_stops_all(quick: list[CommandError]) -> None:
    def work(peers: Peers) -> None:
        if peers.place.rank == 0:
            raise StoppedError("stopped by SIGTERM")
        peers.gather(0, "the first of each host")

    assert str(together(2, work)[1]) == "rank 0 ended: stopped by SIGTERM"
    assert isinstance(together(2, work)[1], StoppedError)


def test_a_store_that_is_gone_ends_all(quick: list[CommandError]) -> None:
    table = Table()

    def work(peers: Peers) -> None:
        peers.gather(0, "before")
        if peers.place.rank == 0:
            time.sleep(0.2)
            table.gone = True
        peers.gather(0, "step 5")

    for error in together(2, work, table):
        assert isinstance(error, PeerLostError), error
        assert "gone: it does not answer" in str(error)


def test_processes_that_fell_apart_are_told_so(quick: list[CommandError]) -> None:
    errors = together(2, lambda peers: peers.gather(0, f"step {peers.place.rank}"))
    assert str(errors[0]).startswith("rank 1 is at 'step 1' while rank 0 is at 'step 0'")


def test_torchrun_and_srun_say_where_a_process_stands() -> None:
    assert find_meeting({}) is None
    assert find_meeting({"WORLD_SIZE": "1", "RANK": "0"}) is None
    # a batch script runs in the job's first task, and is one process
    assert find_meeting({"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}) is None
    place = Place(3, 4, 1, attempt=2, restarts=3)
    assert find_meeting(TORCHRUN) == Meeting(place, "node1", 29500, alone=False, served=True)
    loopback = find_meeting({**TORCHRUN, "MASTER_ADDR": LOOPBACK})
    assert loopback is not None
    assert loopback.alone
    found = find_meeting(SRUN)
    assert found is not None
    assert found == Meeting(Place(9, 16, 1), "gpu07", 20_000 + 123456 % 10_000, alone=False)
    # steps of one job may run side by side
    second = find_meeting(SRUN | {"SLURM_STEP_ID": "1"})
    assert second is not None
    assert second.port == found.port + 1
    one_host = find_meeting(SRUN | {"SLURM_STEP_NUM_NODES": "1"})
    assert one_host is not None
    assert (one_host.address, one_host.alone) == (LOOPBACK, True)
    with pytest.raises(InputError, match="incomplete"):
        find_meeting({"WORLD_SIZE": "2"})


def test_a_launch_shares_the_cores_and_asks_for_no_more_gpus_than_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch, torchrun = pytest.importorskip("torch"), pytest.importorskip("torch.distributed.run")
    started: list[Any] = []
    monkeypatch.setattr(torchrun, "run", started.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    monkeypatch.setattr(os, "environ", {})
    assert launch("toy", 2, ["--devices=2", "--device", "cpu", "--lr=1"]) == 0
    assert os.environ["OMP_NUM_THREADS"] == "4"
    # one process fails with one line; that the others are ended is not worth one for each
    for module in ("multiprocessing.api", "agent.server.api"):
        assert logging.getLogger(f"torch.distributed.elastic.{module}").getEffectiveLevel() == logging.ERROR
    assert (started[0].nproc_per_node, started[0].training_script) == ("2", "toy")
    assert started[0].training_script_args == ["--device", "cpu", "--lr=1"]
    with pytest.raises(InputError, match="--devices 2: this host has 1 GPUs"):
        launch("toy", 2, ["--devices=2"])


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("a1", "a1"),
        ("a1,b2", "a1"),
        ("n[03-05,9],l1", "n03"),
        ("g-2-[7]x", "g-2-7x"),
        ("n[1,3]-ib,o", "n1-ib"),
    ],
)
def test_the_first_host_of_slurms_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def config(rows: int, micro_batch: int) -> TrainConfig:
    batch = BatchSection(tokens_per_step=rows * 8, micro_batch=micro_batch)
    return TrainConfig(model=ModelSizes(context=8), batch=batch)


@pytest.mark.parametrize(
    ("rows", "micro_batch", "world", "devices", "want"),
    [(8, 8, 1, 1, Cut(8, 8)), (8, 2, 2, 1, Cut(4, 2)), (8, 8, 2, 1, Cut(4, 4)), (8, 2, 2, 2, Cut(4, 4))],
)
def test_rows_are_shared_by_devices(rows: int, micro_batch: int, world: int, devices: int, want: Cut) -> None:
    assert cut_rows(config(rows, micro_batch), Place(0, world, devices=devices)) == want


@pytest.mark.parametrize(
    ("rows", "micro_batch", "world", "said"),
    [
        (16, 16, 3, "the nearest .* is 15 rows: --tokens-per-step 120"),
        (12, 4, 2, "--micro-batch 3"),
    ],
)
def test_rows_that_devices_do_not_divide_are_refused_with_the_nearest(
    rows: int, micro_batch: int, world: int, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        cut_rows(config(rows, micro_batch), Place(0, world))


def test_a_launcher_that_ends_the_others_does_not_cut_off_why_they_end(quick: list[CommandError]) -> None:
    """As torchrun does when it misses a process, while the error that this made is being explained."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    launcher = threading.Timer(0.05, signal.raise_signal, [signal.SIGTERM])
    try:
        launcher.start()
        error = ConnectionError("reset by peer")
        assert watch.Watch(Place(0, 2, 0), Table(), StopFlag(), lambda: 9.0).explain(error) is error
    finally:
        launcher.join()
        signal.signal(signal.SIGTERM, before)
    assert heard == []
