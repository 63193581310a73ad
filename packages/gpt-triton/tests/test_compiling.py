"""Kernels not compiled yet are left out of a first run, compiled together, and launched in a second."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from gpt_triton import compiling
from gpt_triton.compiling import hash_compiler, launch_compiled

# in a process of its own: the other tests choose the interpreter, which compiles nothing
PROGRAM = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

class Driver:
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0

triton.runtime.driver.set_active(Driver())
run, launched = JITFunction.run, []

def compile_only(self, *args, grid, warmup, **named):
    kernel = run(self, *args, grid=grid, warmup=True, **named)
    launched.append((self.__name__, kernel is not None))

JITFunction.run = compile_only
from gpt_triton import kernels
from gpt_triton.compiling import launch_compiled
from gpt_triton.dropout import Dropout

x, gain = torch.empty(4, 16, device="meta"), torch.empty(16, device="meta")
drop = Dropout(0.5, torch.empty(3, dtype=torch.int64, device="meta"), 4)

def launch():
    y, _ = kernels.layer_norm_fwd(x, gain, gain)
    kernels.dropout_fwd(y, drop)
    kernels.layer_norm_fwd(x, gain, gain)

launch_compiled(launch)
print(launched)
launched.clear()
launch_compiled(launch)
print(launched)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Triton's compiler runs on Linux")
def test_a_launch_is_repeated_once_its_kernels_are_compiled() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    names = ("_layer_norm_fwd_kernel", "_dropout_kernel", "_layer_norm_fwd_kernel")
    assert first == str([(name, False) for name in names] + [(name, True) for name in names])
    assert second == str([(name, True) for name in names])


def test_on_a_gpu_kernels_are_loaded_by_the_threads_that_compile_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events: list[str] = []

    class Kernel:
        @property
        def run(self) -> None:
            events.append("loaded")

    monkeypatch.setattr(compiling, "_left_out", lambda _: (0, [Kernel, Kernel]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    assert compiling.launch_compiled(lambda: events.append("launched") or len(events)) == 3
    assert events == ["loaded", "loaded", "launched"]


def test_without_kernels_a_launch_happens_once() -> None:
    calls: list[int] = []
    launch_compiled(lambda: calls.append(1))
    assert calls == [1]


def test_a_compilation_finds_the_compiler_hashed() -> None:
    from triton.runtime.cache import triton_key

    triton_key.cache_clear()
    thread = hash_compiler()
    assert thread is not None
    thread.join()
    assert triton_key.cache_info().currsize == 1
