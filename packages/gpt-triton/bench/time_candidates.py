"""Time the sizes that kernels could have on this GPU, and print the fastest beside those that they have.

Nothing is tuned in a run: who changes a choice runs this first, and writes beside the kernel what it says.
Sizes are those of GPT-2 124M; times are of short bursts, and a run at the card's power limit is slower.

    python packages/gpt-triton/bench/time_candidates.py [--rows 64] [--only products]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from gpt_triton.compiling import launch_compiled
from gpt_triton.kernels import cross_entropy, layer_norm, matmul, tiles
from gpt_triton.kernels.matmul_kernels import Epilogue
from gpt_triton.kernels.primitives import is_hopper, multiprocessors
from gpt_triton.kernels.tiles import MatmulTiles
from kernel_cases import DEVICE, PADDED, VOCAB, WIDTH
from kernel_report import milliseconds
from torch import Tensor

CONTEXT = 1024
BFLOAT16 = (
    MatmulTiles(128, 256, 64, 8, 3),
    MatmulTiles(256, 128, 64, 8, 3),
    MatmulTiles(128, 128, 64, 8, 4),
    MatmulTiles(128, 128, 64, 4, 3, programs=2),
)
FLOAT32 = tuple(
    MatmulTiles(*sizes)
    for sizes in (
        (64, 64, 16, 4, 3),
        (128, 64, 16, 4, 3),
        (64, 128, 16, 4, 3),
        (64, 128, 32, 4, 2),
        (128, 128, 16, 4, 3),
        (128, 128, 16, 8, 3),
    )
)


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers, small enough for every sum."""
    return (torch.randn(shape, device=DEVICE) * 0.05).to(dtype)


@contextmanager
def replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """Let a module use another function while its launches are recorded."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def compare(what: str, chosen: object, choices: dict[str, Callable[[], Any]]) -> None:
    """Print the fastest choices, and the one that is made now."""

    def once() -> None:
        for run in choices.values():
            with suppress(Exception):
                run()

    launch_compiled(once)
    times = {}
    for name, run in choices.items():
        try:
            times[name] = milliseconds(run)
        except Exception as error:  # noqa: BLE001  # a choice that does not fit must not hide the others
            print(f"    {what}, {name}: {type(error).__name__}: {str(error)[:80]}")
    ranked = sorted(times, key=lambda name: times[name])[:4]
    best = ",  ".join(f"{name} {times[name]:.4f}" for name in ranked)
    print(f"{what:28s} now {chosen};  {best}", flush=True)


def launchers(a: Tensor, b: Tensor, out: Tensor, epilogue: Epilogue) -> dict[str, Callable[[], Any]]:
    """The product of bfloat16 by each kernel and each cut."""

    def by(launch: Any, plan: MatmulTiles) -> Callable[[], Any]:
        return lambda: launch(a, b, out, plan, epilogue, False)

    found = {_name(plan): by(matmul.launch_descriptors, plan) for plan in BFLOAT16}
    if is_hopper(DEVICE) and not epilogue.gelu:
        found["hopper"] = by(matmul.launch_hopper, BFLOAT16[0])
    return found


def time_products(tokens: int) -> None:
    """Products over all tokens, with what follows them."""
    x, wide, stream = normal(tokens, WIDTH), normal(tokens, 4 * WIDTH), normal(tokens, WIDTH)
    up, down = normal(WIDTH, 4 * WIDTH), normal(4 * WIDTH, WIDTH)
    bias, wide_bias = normal(WIDTH, dtype=torch.float32), normal(4 * WIDTH, dtype=torch.float32)
    out, wide_out, slope = torch.empty_like(x), torch.empty_like(wide), torch.empty_like(wide)
    cases = {
        "MLP in": (x, up, wide_out, Epilogue(bias=wide_bias, gelu=True, slope=slope)),
        "MLP out": (wide, down, out, Epilogue(bias=bias, residual=stream)),
        "MLP out, d_x": (x, down.T, wide_out, Epilogue(factor=wide)),
        "MLP in, d_x": (wide, up.T, out, Epilogue()),
        "attention out": (x, normal(WIDTH, WIDTH), out, Epilogue(bias=bias, residual=stream)),
        "attention in": (x, normal(WIDTH, 3 * WIDTH), normal(tokens, 3 * WIDTH), Epilogue()),
    }
    for name, (a, b, c, epilogue) in cases.items():
        chosen = tiles.matmul_tiles(len(a), b.shape[1], a.shape[1], a.dtype, DEVICE, False, epilogue.gelu)
        compare(name, _name(chosen), launchers(a, b, c, epilogue))


def time_splits(tokens: int) -> None:
    """Weight gradients: parts of their long sum."""
    for n_in, n_out in ((1, 1), (1, 3), (1, 4), (4, 1)):
        x, d_y = normal(tokens, n_in * WIDTH), normal(tokens, n_out * WIDTH)
        out = normal(x.shape[1], d_y.shape[1], dtype=torch.float32)
        chosen = tiles.matmul_tiles(*out.shape, tokens, x.dtype, DEVICE, True)

        def split(parts: int, x: Tensor = x, d_y: Tensor = d_y, out: Tensor = out) -> None:
            plan = BFLOAT16[0]._replace(splits=parts)
            with replaced(matmul, "matmul_tiles", lambda *_: plan):
                matmul.product(x.T, d_y, out, accumulate=True)

        choices = {f"{parts}": lambda parts=parts: split(parts) for parts in (1, 3, 5, 7, 9, 11, 14, 22)}
        compare(f"d_W {n_in * WIDTH}x{n_out * WIDTH}, parts", chosen.splits, choices)


def time_float32(tokens: int) -> None:
    """Products of float32, on the plain units."""
    x, weight = normal(tokens, WIDTH, dtype=torch.float32), normal(WIDTH, 4 * WIDTH, dtype=torch.float32)
    out = normal(tokens, 4 * WIDTH, dtype=torch.float32)
    chosen = tiles.matmul_tiles(tokens, 4 * WIDTH, WIDTH, x.dtype, DEVICE, False)
    compare(
        "float32",
        _name(chosen),
        {
            _name(plan): lambda plan=plan: matmul.launch_pointers(x, weight, out, plan, Epilogue(), False)
            for plan in FLOAT32
        },
    )


def time_rows(tokens: int) -> None:
    """Kernels that go through rows: LayerNorm's two, and the softmax over the logits."""
    x, gain = normal(tokens, WIDTH), normal(WIDTH, dtype=torch.float32)
    _, res = layer_norm.layer_norm_fwd(x, gain, gain)
    block = layer_norm.norm_tiles(WIDTH)[1]

    def forward(rows: int, warps: int) -> None:
        with replaced(layer_norm, "norm_tiles", lambda _: (rows, block, warps)):
            layer_norm.layer_norm_fwd(x, gain, gain)

    def backward(rows: int, warps: int, programs: int) -> None:
        plan = rows, block, warps, programs * multiprocessors(DEVICE)
        with replaced(layer_norm, "norm_bwd_tiles", lambda *_: plan):
            layer_norm.layer_norm_bwd(res, gain, x, gain, gain, x)

    cuts = ((1, 1), (2, 1), (4, 1), (2, 2), (4, 4), (8, 8))
    chosen: object = layer_norm.norm_tiles(WIDTH)
    compare("LayerNorm", chosen, {str(cut): lambda cut=cut: forward(*cut) for cut in cuts})
    wider = ((1, 1, 16), (2, 2, 8), (2, 4, 4), (4, 4, 3), (4, 4, 4), (4, 8, 2), (8, 8, 2))
    chosen = layer_norm.norm_bwd_tiles(tokens, WIDTH, DEVICE)
    compare("LayerNorm backward", chosen, {str(cut): lambda cut=cut: backward(*cut) for cut in wider})


def time_softmax(tokens: int) -> None:
    """The softmax over the logits and its gradient, in place."""
    rows = min(tokens, cross_entropy.cross_entropy_chunk(tokens, PADDED, DEVICE))
    logits, nll = normal(rows, PADDED), normal(rows, dtype=torch.float32)
    targets, scale = torch.arange(rows, device=DEVICE, dtype=torch.int32) % VOCAB, normal(dtype=torch.float32)

    def softmax(block: int, warps: int) -> None:
        cross_entropy._cross_entropy_kernel[(rows,)](
            logits, targets, scale, nll, V=VOCAB, Vp=PADDED, BLOCK=block, num_warps=warps
        )

    cuts = ((2048, 8), (4096, 8), (4096, 16), (8192, 16), (8192, 32), (16384, 32))
    chosen = cross_entropy.vocabulary_block(PADDED)
    compare("cross-entropy", chosen, {str(cut): lambda cut=cut: softmax(*cut) for cut in cuts})


def _name(plan: MatmulTiles) -> str:
    parts = f"{plan.block_m}x{plan.block_n}x{plan.block_k}, {plan.warps} warps, {plan.stages} stages"
    return parts + (" twice" if plan.programs > 1 else "")


def main() -> int:
    """Time all, or those with ``--only`` in their name."""
    parser = argparse.ArgumentParser(description="Time the sizes that the kernels could have on this GPU.")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--only", default="", help="products, splits, float32, rows or softmax")
    args = parser.parse_args()
    for part in (time_products, time_splits, time_rows, time_softmax, time_float32):
        if args.only in part.__name__:
            part(args.rows * CONTEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
