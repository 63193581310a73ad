"""CUDA graphs without a GPU: what is called when, in which memory; a repetition reads what it is given."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import pytest
import torch
from gpt_trainer.torch_replay import Replay


class Device:
    """Stands in for a GPU: a graph repeats the call that was made while it was recorded."""

    def __init__(self, monkeypatch):
        self.done, self.graph = [], None
        device = self

        class Graph:
            memory = call = None

            def pool(self):
                return self.memory

            def replay(self):
                x, result = self.call
                device.done.append("replayed")
                result.copy_(2 * x)

        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        monkeypatch.setattr(torch.cuda, "graph", self.recording)

    def recording(self, graph, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"
        self.done.append(f"recorded in {pool}")
        self.graph, graph.memory = graph, pool or "a new pool"
        return nullcontext()

    def double(self, x, _=None):
        result = 2 * x
        self.done.append(x.tolist())
        if self.graph is not None:
            self.graph.call, self.graph = (x, result), None
        return result


@pytest.fixture
def device(monkeypatch):
    return Device(monkeypatch)


def test_the_second_call_is_recorded_and_the_third_repeats_it(device):
    replay = Replay(device.double, records=True)
    for value in (1.0, 2.0, 3.0):
        assert replay(torch.tensor([value]), None).tolist() == [2 * value]
    assert device.done == [[1.0], "recorded in None", [2.0], "replayed", "replayed"]
    # another shape is another recording, in the same memory
    for value in (4.0, 5.0):
        assert replay(torch.tensor([value, 0.0]), None).tolist() == [2 * value, 0.0]
    assert device.done[5:] == [[4.0, 0.0], "recorded in a new pool", [5.0, 0.0], "replayed"]


def test_a_recording_leaves_its_callers_tensors_alone(device):
    replay, second = Replay(device.double, records=True), torch.tensor([2.0])
    for given in (torch.tensor([1.0]), second, torch.tensor([3.0])):
        replay(given)
    assert second.tolist() == [2.0]


@pytest.mark.parametrize("collects", [True, False])
def test_no_older_graph_goes_while_one_is_recorded(collects, device):
    """CUDA refuses the end of a graph meanwhile, and the recording is void."""
    during = []
    replay = Replay(lambda x: during.append(gc.isenabled()) or device.double(x), records=True)
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        for _ in range(3):
            replay(torch.tensor([1.0]))
        assert (during, gc.isenabled()) == ([collects, False], collects)
    finally:
        (gc.enable if before else gc.disable)()


def test_a_first_call_may_be_made_before_it_counts(device):
    made = []
    replay = Replay(device.double, records=True, first=lambda call: made.append("first") or call())
    replay.prepare(torch.tensor([1.0]))
    assert (made, device.done) == (["first"], [[1.0]])
    assert replay(torch.tensor([3.0])).tolist() == [6.0]
    assert (made, device.done[1:]) == (["first"], ["recorded in None", [3.0], "replayed"])


def test_two_share_their_memory(device):
    one = Replay(device.double, records=True)
    other = Replay(device.double, records=True, beside=one)
    for replay in (one, one, other, other):
        replay(torch.tensor([1.0]))
    assert [said for said in device.done if "recorded" in said] == [
        "recorded in None",
        "recorded in a new pool",
    ]


def test_without_a_gpu_every_call_runs_as_it_is(device):
    replay = Replay(device.double, records=False)
    replay.prepare(torch.tensor([1.0]))
    assert [replay(torch.tensor([value])).tolist() for value in (1.0, 2.0, 3.0)] == [[2.0], [4.0], [6.0]]
    assert device.done == [[1.0], [2.0], [3.0]]
