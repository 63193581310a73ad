"""Compile every kernel for a Hopper GPU without having one, and report what the assembler made of it.

Each op is called at the sizes of GPT-2 124M on meta tensors, which have shapes but no data, while a stand-in
driver says that the device is of compute capability 9.0. Every launch is compiled, none is run; registers,
spilled bytes and shared memory are read from the machine code. Fails if a kernel spills more than
``SPILL_LIMIT`` bytes per thread or needs more shared memory than the device has.

    python packages/gpt-triton/bench/compile_kernels.py [--rows 64] [--context 1024] [--only attention]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

SHARED_LIMIT = 227 * 1024
# bytes per thread; in an epilogue that draws a mask some are spilled once per tile, which costs little
SPILL_LIMIT = 256


class Compiled(NamedTuple):
    """One kernel as the assembler left it.

    Attributes:
        name: Kernel.
        note: Constants of this launch that tell it from others.
        registers: Per thread.
        spilled: Bytes of stack per thread.
        shared: Bytes per program.
        warps: Of a program.
        seconds: Spent compiling.
    """

    name: str
    note: str
    registers: int
    spilled: int
    shared: int
    warps: int
    seconds: float


class HopperDriver:
    """Answers what a launch asks before it compiles."""

    def get_current_target(self) -> GPUTarget:
        """Compute capability 9.0."""
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """The default stream."""
        return 0


FOUND: dict[str, Compiled] = {}


def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
    """Stand in for ``JITFunction.run``: compile what would be launched."""
    del grid, warmup
    start = time.perf_counter()
    kernel = RUN(self, *args, grid=(1,), warmup=True, **kwargs)
    seconds = time.perf_counter() - start
    names = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "SPLITS", "STAY", "STREAM", "ROWS", "BLOCK")
    note = " ".join(f"{name}={kwargs[name]}" for name in names if name in kwargs)
    key = f"{self.__name__} {kernel.hash}"
    if key not in FOUND:
        registers, stack = _resources(kernel.asm["cubin"])
        metadata = kernel.metadata
        name = f"{self.__name__}[{_dtype(args)}]"
        FOUND[key] = Compiled(name, note, registers, stack, metadata.shared, metadata.num_warps, seconds)
        print(_row(FOUND[key]), flush=True)


def _dtype(args: tuple[Any, ...]) -> str:
    first = args[0]
    return str(getattr(getattr(first, "base", first), "dtype", "")).removeprefix("torch.")


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes per thread, by the disassembler that comes with Triton."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise RuntimeError(f"no resource usage in the disassembler's answer: {text!r}")
    return int(found[1]), int(found[2])


def _row(c: Compiled) -> str:
    return (
        f"{c.name:38s} {c.note:52s} {c.registers:4d} registers {c.spilled:5d} spilled "
        f"{c.shared / 1024:6.1f} KiB {c.warps:2d} warps {c.seconds:5.1f} s"
    )


def launch_all(dtype: torch.dtype, rows: int, context: int, only: str) -> None:
    """Call every op once at the sizes of GPT-2 124M, on tensors without data."""
    from gpt_trainer.backend import OptimizerConfig
    from gpt_triton import kernels as ops
    from gpt_triton.residuals import Dropout

    device = torch.device("meta")

    def new(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=kind, device=device)

    f32, i32 = torch.float32, torch.int32
    width, heads, vocab, padded = 768, 12, 50257, 50304
    tokens = rows * context
    drop = Dropout(0.1, new(2, kind=torch.int64))
    x, wide = new(tokens, width), new(tokens, 4 * width)
    if only in "layer_norm":
        gain, bias = new(width, kind=f32), new(width, kind=f32)
        _, res = ops.layer_norm_fwd(x, gain, bias)
        ops.layer_norm_bwd(res, gain, x, gain, bias)
        ops.layer_norm_bwd(res, gain, x, gain, bias, x, bias)
    if only in "gelu dropout":
        ops.gelu_bwd(x, ops.gelu_fwd(x))
        ops.dropout_fwd(x, drop)
    if only in "linear":
        ops.linear_fwd(x, new(width, 3 * width), new(3 * width, kind=f32))
        ops.linear_gelu_fwd(x, new(width, 4 * width), new(4 * width, kind=f32))
        for site in (None, drop):
            ops.linear_residual_fwd(x, new(width, width), new(width, kind=f32), x, site)
        ops.linear_residual_fwd(wide, new(4 * width, width), new(width, kind=f32), x)
        ops.linear_gelu_bwd_dx(x, new(4 * width, width), wide)
        ops.linear_bwd_dx(new(tokens, 3 * width), new(width, 3 * width))
        for n_in, n_out in ((1, 1), (1, 3), (1, 4), (4, 1)):
            d_weight = new(n_in * width, n_out * width, kind=f32)
            ops.linear_bwd_dwdb(
                new(tokens, n_in * width), new(tokens, n_out * width), d_weight, new(n_out * width, kind=f32)
            )
        # rows of 514 bytes cannot be described: the kernel of pointers
        ops.linear_gelu_fwd(x, new(width, 257), new(257, kind=f32))
        ops.linear_bwd_dwdb(x, new(tokens, 257), new(width, 257, kind=f32), new(257, kind=f32))
    if only in "attention":
        qkv, starts = new(rows, context, 3 * width), new(rows, context, kind=i32)
        for where, site in ((None, None), (starts, None), (None, drop)):
            out, kept = ops.attention_fwd(qkv, heads, where, site)
            ops.attention_bwd(kept, out, heads, site)
        ops.attention_fwd(qkv, heads, starts, None, new(rows, kind=i32))
    if only in "cross_entropy":
        wte, d_wte = new(padded, width), new(padded, width, kind=f32)
        targets = new(tokens, kind=i32)
        ops.linear_cross_entropy(x, wte, targets, vocab, new(kind=f32), d_wte)
        ops.linear_nll(x, wte, targets, vocab)
    if only in "embedding":
        ids = new(rows, context, kind=i32)
        ops.embedding_fwd(ids, ids, new(padded, width), new(context, width), drop)
        for site in (None, drop):
            ops.embedding_bwd(ids, ids, x, new(padded, width, kind=f32), new(context, width, kind=f32), site)
    if only in "adamw":
        flat = new(124_475_904, kind=f32)
        shadow = new(124_475_904, kind=torch.bfloat16) if dtype == torch.bfloat16 else None
        norm, hyper = ops.global_norm(flat), new(4, kind=f32)
        ops.adamw_update(flat, flat, flat, flat, shadow, 1 << 20, norm, hyper, OptimizerConfig())


def main() -> int:
    """Compile all, print one line per kernel; 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description="Compile every kernel for compute capability 9.0.")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--only", default="", help="part of an op's name")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), action="append")
    args = parser.parse_args()
    print(f"triton {triton.__version__}, compute capability 9.0, B={args.rows}, T={args.context}")
    for dtype in args.dtype or ("bfloat16", "float32"):
        launch_all(getattr(torch, dtype), args.rows, args.context, args.only)
    bad = [c for c in FOUND.values() if c.spilled > SPILL_LIMIT or c.shared > SHARED_LIMIT]
    for c in bad:
        print("over the limit:", _row(c))
    print(f"{len(FOUND)} kernels compiled, {len(bad)} over a limit")
    return 1 if bad else 0


if __name__ == "__main__":
    triton.runtime.driver.set_active(HopperDriver())
    RUN = JITFunction.run
    JITFunction.run = record
    sys.exit(main())
