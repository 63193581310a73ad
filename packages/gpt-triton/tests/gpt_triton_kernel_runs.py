"""Setup of the kernel tests: imported by each before Triton, so that without a GPU the interpreter runs.

Each op is run three times on the same numbers: by the kernels, by the reference in float64 (what is
right) and, for bfloat16, by the reference in bfloat16 (how wrong torch's own ops are). Inputs and outputs
of the kernels lie between canaries.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if DEVICE.type == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")

from gpt_triton import kernels, reference  # noqa: E402
from gpt_triton.dropout import Dropout  # noqa: E402
from torch import Tensor  # noqa: E402

Run = Callable[[Any, Callable[..., Tensor], torch.dtype], list[Tensor]]

# relative Frobenius error against float64
FLOAT32 = 1e-5
# bfloat16: of torch's own op in bfloat16, and never asked to beat float32
BFLOAT16_RATIO = 2.0

CANARY = 64
DTYPES = (torch.float32, torch.bfloat16)


KEY, FIRST_ROW = (123456789, 4000000000), 2**32 - 16


def dropout(context: int, rate: float = 0.3) -> Dropout:
    """A mask of rows of so many positions, whose words need all 32 bits."""
    return Dropout(rate, torch.tensor([*KEY, FIRST_ROW], device=DEVICE), context)


def randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal float32 numbers, the same on every device, representable in bfloat16."""
    stream = torch.Generator().manual_seed(seed + sum(shape))
    x = torch.randn(shape, generator=stream) * scale
    return x.bfloat16().float().to(DEVICE)


class Fenced:
    """Copies of tensors between canaries; ``check`` fails if a canary was written."""

    def __init__(self) -> None:
        self.whole: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """A copy of ``x`` in ``dtype``, with 64 NaN on each side."""
        dtype = dtype or x.dtype
        buffer = torch.full((x.numel() + 2 * CANARY,), torch.nan, dtype=dtype, device=x.device)
        view = buffer[CANARY : CANARY + x.numel()].view(x.shape)
        view.copy_(x)
        self.whole.append((buffer, view))
        return view

    def check(self) -> None:
        """Every canary is still NaN."""
        for buffer, view in self.whole:
            fence = torch.cat([buffer[:CANARY], buffer[CANARY + view.numel() :]])
            assert fence.isnan().all(), f"wrote outside a tensor of shape {tuple(view.shape)}"


def relative(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius error in float64."""
    got, want = got.double().cpu(), want.double().cpu()
    return float((got - want).norm() / want.norm().clamp(min=1e-30))


def plain(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A copy without canaries."""
    return x.to(dtype or x.dtype, copy=True)


def check_op(
    run: Run, dtype: torch.dtype, own: Callable[[torch.dtype], list[Tensor]] | None = None
) -> list[Tensor]:
    """Run an op by kernels and reference and compare each output; returns the kernels' outputs.

    In bfloat16 the yardstick is ``own(dtype)``, by default the reference in that dtype.

    ``run(ops, copy, dtype)`` makes its arguments through ``copy(tensor, dtype)``; float32 statistics and
    gradients it copies with ``wide(dtype)``.
    """
    fence = Fenced()
    got = run(kernels, fence, dtype)
    fence.check()
    want = run(reference, plain, torch.float64)
    torch_own = want
    if dtype == torch.bfloat16:
        torch_own = run(reference, plain, dtype) if own is None else own(dtype)
    assert len(got) == len(want)
    for index, (ours, exact, own) in enumerate(zip(got, want, torch_own, strict=True)):
        assert ours.shape == exact.shape, f"output {index}: {ours.shape} != {exact.shape}"
        assert ours.isfinite().all(), f"output {index}: not finite"
        limit = max(FLOAT32, BFLOAT16_RATIO * relative(own, exact))
        error = relative(ours, exact)
        assert error <= limit, f"output {index}: relative error {error:.1e} > {limit:.1e}"
    return got


def wide(dtype: torch.dtype) -> torch.dtype:
    """Dtype of statistics and gradients beside activations of ``dtype``."""
    return torch.float64 if dtype == torch.float64 else torch.float32
