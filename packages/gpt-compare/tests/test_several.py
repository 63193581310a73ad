"""What the bench of several GPUs says of a trace: how long a GPU only sends."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def traces() -> ModuleType:
    path = Path(__file__).parents[1] / "bench" / "traces.py"
    spec = importlib.util.spec_from_file_location("traces", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def event(name: str, begin: float, long: float, **more: Any) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": begin, "dur": long, "pid": 7, "tid": 13, **more}


def test_sums_beside_products_are_hidden_in_torch_s_trace(traces: ModuleType, tmp_path: Path) -> None:
    on_gpu = {"cat": "kernel", "args": {"device": 0}}
    events = [
        event("product", 0, 10, **on_gpu),
        event("ncclDevKernel_AllReduce", 8, 10, **on_gpu),  # from 10 on nothing else runs, until 15
        event("product", 15, 2, **on_gpu),  # and again from 17 to 18
        event("ncclDevKernel_AllReduce", 30, 1, cat="cpu_op"),  # the host's call is no kernel
        event("Memcpy", 40, 5, cat="gpu_memcpy", args={"device": 0}),
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    found = list(traces.kernels(tmp_path))
    assert len(found) == 4
    assert traces.unhidden(found) == 6.0


def test_the_gpu_that_waits_longest_counts_in_jax_s_trace(traces: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "plugins" / "profile" / "now"
    folder.mkdir(parents=True)
    names = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": f"/device:GPU:{pid}"}}
        for pid in (1, 2)
    ]
    names += [
        {"ph": "M", "name": "thread_name", "pid": pid, "tid": 13, "args": {"name": "Stream #13(Compute)"}}
        for pid in (1, 2, 9)  # 9 is the host
    ]
    events = [event("ncclDevKernel_ReduceScatter", 0, 3 * pid, pid=pid) for pid in (1, 2, 9)]
    text = json.dumps({"traceEvents": names + events}).encode()
    (folder / "host.trace.json.gz").write_bytes(gzip.compress(text))
    assert traces.unhidden(traces.kernels(tmp_path)) == 6.0
    assert traces.unhidden([]) == 0.0
