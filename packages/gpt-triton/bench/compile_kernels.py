"""Compile every kernel for a GPU without having one, and report what the assembler made of it.

Each op is called at the sizes of GPT-2 124M on meta tensors, which have shapes but no data, while a stand-in
driver says what compute capability the device has. Every launch is compiled, none is run; registers,
spilled bytes and shared memory are read from the machine code. Fails if a kernel spills more than
``SPILL_LIMIT`` bytes per thread or needs more shared memory than the device has.

    python packages/gpt-triton/bench/compile_kernels.py [--capability 90] [--rows 64] [--only attention]
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
from gpt_trainer.backend import OptimizerConfig
from gpt_triton import kernels as ops
from gpt_triton.dropout import Dropout
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

WIDTH, HEADS, VOCAB, PADDED, PARAMETERS = 768, 12, 50257, 50304, 124_475_904
# KiB of shared memory that a program may take, by ten times the compute capability
SHARED_LIMITS = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
# bytes per thread; in an epilogue that draws a mask some are spilled once per tile, which costs little. Most,
# 328, are spilled on Blackwell by attention's d_k and d_v with documents, whose tiles were chosen on Hopper
SPILL_LIMIT = 384


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


class OfflineDriver:
    """Answers what a launch asks before it compiles.

    Args:
        capability: Ten times the compute capability.
    """

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        """What is compiled for."""
        return self._target

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


class Launches:
    """Every op at the sizes of GPT-2 124M, on tensors without data; a method each.

    Args:
        dtype: Of activations and matrices.
        rows: Rows of ``context`` tokens.
        context: Positions of a row.
    """

    def __init__(self, dtype: torch.dtype, rows: int, context: int) -> None:
        self.dtype, self.rows, self.context = dtype, rows, context
        self.drop = Dropout(0.1, self.new(3, kind=torch.int64), context)
        self.x = self.new(rows * context, WIDTH)

    def new(self, *shape: int, kind: torch.dtype | None = None) -> torch.Tensor:
        """A tensor without data."""
        return torch.empty(shape, dtype=kind or self.dtype, device="meta")

    def vector(self, width: int) -> torch.Tensor:
        """A gain or a bias."""
        return self.new(width, kind=torch.float32)

    def layer_norm(self) -> None:
        """Without and with what reaches its input from elsewhere."""
        gain, bias = self.vector(WIDTH), self.vector(WIDTH)
        _, res = ops.layer_norm_fwd(self.x, gain, bias)
        ops.layer_norm_bwd(res, gain, self.x, gain, bias)
        ops.layer_norm_bwd(res, gain, self.x, gain, bias, self.x)

    def dropout(self) -> None:
        """Of activations."""
        ops.dropout_fwd(self.x, self.drop)

    def linear(self) -> None:
        """Forward, with each epilogue."""
        x, wide = self.x, self.new(len(self.x), 4 * WIDTH)
        ops.linear_fwd(x, self.new(WIDTH, 3 * WIDTH), self.vector(3 * WIDTH))
        for slope in (True, False):
            ops.linear_gelu_fwd(x, self.new(WIDTH, 4 * WIDTH), self.vector(4 * WIDTH), slope)
        for site in (None, self.drop):
            ops.linear_residual_fwd(x, self.new(WIDTH, WIDTH), self.vector(WIDTH), x, site)
        ops.linear_residual_fwd(wide, self.new(4 * WIDTH, WIDTH), self.vector(WIDTH), x)

    def linear_backward(self) -> None:
        """Gradients of inputs, matrices and biases."""
        tokens = len(self.x)
        wide = self.new(tokens, 4 * WIDTH)
        ops.linear_gelu_bwd_dx(self.x, self.new(4 * WIDTH, WIDTH), wide)
        ops.linear_bwd_dx(self.new(tokens, 3 * WIDTH), self.new(WIDTH, 3 * WIDTH))
        for n_in, n_out in ((WIDTH, WIDTH), (WIDTH, 3 * WIDTH), (WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)):
            d_weight = self.new(n_in, n_out, kind=torch.float32)
            ops.linear_bwd_dwdb(self.new(tokens, n_in), self.new(tokens, n_out), d_weight, self.vector(n_out))

    def linear_by_pointers(self) -> None:
        """Rows of 514 bytes cannot be described."""
        x, odd = self.x, 257
        ops.linear_gelu_fwd(x, self.new(WIDTH, odd), self.vector(odd))
        d_weight = self.new(WIDTH, odd, kind=torch.float32)
        ops.linear_bwd_dwdb(x, self.new(len(x), odd), d_weight, self.vector(odd))

    def attention(self) -> None:
        """Whole rows, documents, dropout."""
        qkv = self.new(self.rows, self.context, 3 * WIDTH)
        starts = self.new(self.rows, self.context, kind=torch.int32)
        for where, site in ((None, None), (starts, None), (None, self.drop)):
            out, kept = ops.attention_fwd(qkv, HEADS, where, site)
            ops.attention_bwd(kept, out, HEADS, site)

    def cross_entropy(self) -> None:
        """The head, for training and for scoring."""
        wte, d_wte = self.new(PADDED, WIDTH), self.new(PADDED, WIDTH, kind=torch.float32)
        targets = self.new(len(self.x), kind=torch.int32)
        ops.linear_cross_entropy(self.x, wte, targets, VOCAB, self.new(kind=torch.float32), d_wte)
        ops.linear_nll(self.x, wte, targets, VOCAB)

    def embedding(self) -> None:
        """Both tables."""
        ids = self.new(self.rows, self.context, kind=torch.int32)
        ops.embedding_fwd(ids, ids, self.new(PADDED, WIDTH), self.new(self.context, WIDTH), self.drop)
        for site in (None, self.drop):
            tables = (self.new(count, WIDTH, kind=torch.float32) for count in (PADDED, self.context))
            ops.embedding_bwd(ids, ids, self.x, *tables, site)

    def adamw(self) -> None:
        """Norm and update; with a shadow where products are in bfloat16."""
        flat, scalars = self.vector(PARAMETERS), self.vector(4)
        shadow = self.new(PARAMETERS) if self.dtype == torch.bfloat16 else None
        norm = ops.global_norm(flat)
        ops.adamw_update(flat, flat, flat, flat, shadow, 1 << 20, norm, scalars, OptimizerConfig())

    def muon(self) -> None:
        """Wide and tall matrices; with a shadow where products are in bfloat16."""
        norm, scalars = self.vector(1), self.vector(4)
        for shape in ((12, 1, WIDTH, 4 * WIDTH), (12, 1, 4 * WIDTH, WIDTH)):
            stack = self.new(*shape, kind=torch.float32)
            shadow = self.new(*shape) if self.dtype == torch.bfloat16 else None
            ops.muon_update(stack, stack, stack, shadow, norm, scalars, OptimizerConfig(), self.dtype)

    def run(self, only: str) -> None:
        """Call the ops with ``only`` in their name, in the order above."""
        for name, method in vars(Launches).items():
            if name not in ("new", "vector", "run") and not name.startswith("_") and only in name:
                method(self)


def main() -> int:
    """Compile all, print one line per kernel; 1 if a limit is passed."""
    parser = argparse.ArgumentParser(description="Compile every kernel without a GPU.")
    parser.add_argument("--capability", type=int, default=90, choices=SHARED_LIMITS)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--only", default="", help="part of an op's name")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), action="append")
    args = parser.parse_args()
    triton.runtime.driver.set_active(OfflineDriver(args.capability))
    print(f"triton {triton.__version__}, sm_{args.capability}, B={args.rows}, T={args.context}")
    for dtype in args.dtype or ("bfloat16", "float32"):
        Launches(getattr(torch, dtype), args.rows, args.context).run(args.only)
    most = SHARED_LIMITS[args.capability] * 1024
    bad = [c for c in FOUND.values() if c.spilled > SPILL_LIMIT or c.shared > most]
    for c in bad:
        print("over the limit:", _row(c))
    print(f"{len(FOUND)} kernels compiled, {len(bad)} over a limit")
    return 1 if bad else 0


if __name__ == "__main__":
    RUN = JITFunction.run
    JITFunction.run = record
    sys.exit(main())
