"""Every kernel against the reference in float64, forward and each gradient, at sizes that break tiles.

Without a GPU the kernels run in Triton's interpreter, every access bounds-checked; with one, compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gpt_triton_kernel_runs import DEVICE, DTYPES, check_op, dropout, randn, wide
from torch import Tensor

from gpt_triton import kernels  # isort: skip  # after the setup above, which chooses the interpreter

if DEVICE.type == "cpu":
    from gpt_triton_guard import bounds_checked
else:
    bounds_checked = nullcontext

pytestmark = [
    pytest.mark.parametrize("dtype", DTYPES, ids=("float32", "bfloat16")),
    # the sigmoid of a very negative number goes through infinity to 0, as it should; NumPy remarks on it
    pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning"),
]


@pytest.fixture(autouse=True)
def guard() -> Iterator[None]:
    """Every access of every kernel stays inside the arguments of its launch."""
    with bounds_checked():
        yield


# 1 and 65: one row, and one past a tile; 7: most lanes masked; 768: GPT-2's width, no power of two
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (63, 7), (65, 48), (3, 768)])
def test_layer_norm(rows: int, width: int, dtype: torch.dtype) -> None:
    def run(ops: Any, copy: Callable[..., Tensor], dt: torch.dtype) -> list[Tensor]:
        # variances away from 0: at width 1 the gradient is 0 and only its absolute size counts
        x = copy(randn(rows, width, seed=1), dt)
        gain, bias = (copy(randn(width, seed=s), wide(dt)) for s in (2, 3))
        y, res = ops.layer_norm_fwd(x, gain, bias)
        d_gain, d_bias = (copy(torch.ones(width, device=DEVICE), wide(dt)) for _ in range(2))
        d_y, d_skip = copy(randn(rows, width, seed=4), dt), copy(randn(rows, width, seed=5), dt)
        d_x = ops.layer_norm_bwd(res, gain, d_y, d_gain, d_bias, d_skip)
        plain_d_x = ops.layer_norm_bwd(res, gain, d_y, d_gain, d_bias)
        outputs = [y, res.mean, res.rstd, d_x, d_gain, d_bias]
        return outputs if width == 1 else [*outputs, plain_d_x]

    check_op(run, dtype)


@pytest.mark.parametrize("shape", [(1, 1), (63, 7), (65, 11)])
def test_dropout(shape: tuple[int, int], dtype: torch.dtype) -> None:
    def run(ops: Any, copy: Callable[..., Tensor], dt: torch.dtype) -> list[Tensor]:
        x, d_y = copy(randn(*shape, scale=3.0), dt), copy(randn(*shape, seed=1), dt)
        site = dropout(shape[0])
        dropped = ops.dropout_fwd(x, site), ops.dropout_bwd(d_y, site)
        return [t + 1.0 for t in dropped]

    check_op(run, dtype)


# 63 and 65 around the tile of 64; 100 and 257 columns: partial tiles, rows that no descriptor takes
@pytest.mark.parametrize(("rows", "n_in", "n_out"), [(1, 48, 144), (63, 7, 100), (65, 100, 257)])
def test_linear(rows: int, n_in: int, n_out: int, dtype: torch.dtype) -> None:
    def run(ops: Any, copy: Callable[..., Tensor], dt: torch.dtype) -> list[Tensor]:
        x, slope = copy(randn(rows, n_in), dt), copy(randn(rows, n_in, seed=1), dt)
        weight, bias = copy(randn(n_in, n_out, seed=2, scale=0.2), dt), copy(randn(n_out, seed=3), wide(dt))
        d_y, residual = copy(randn(rows, n_out, seed=4), dt), copy(randn(rows, n_out, seed=5), dt)
        d_weight = copy(torch.ones(n_in, n_out, device=DEVICE), wide(dt))
        d_bias = copy(torch.ones(n_out, device=DEVICE), wide(dt))
        ops.linear_bwd_dwdb(x, d_y, d_weight, d_bias)
        return [
            ops.linear_fwd(x, weight, bias),
            ops.linear_fwd(x, weight, None),
            *ops.linear_gelu_fwd(x, weight, bias),
            ops.linear_gelu_fwd(x, weight, bias, False)[0],
            ops.linear_residual_fwd(x, weight, bias, residual),
            ops.linear_residual_fwd(x, weight, bias, residual, dropout(rows)),
            ops.linear_bwd_dx(d_y, weight),
            ops.linear_gelu_bwd_dx(d_y, weight, slope),
            d_weight,
            d_bias,
        ]

    check_op(run, dtype)


def test_weight_gradient_of_a_long_split_sum(dtype: torch.dtype) -> None:
    def run(ops: Any, copy: Callable[..., Tensor], dt: torch.dtype) -> list[Tensor]:
        x, d_y = copy(randn(333, 9), dt), copy(randn(333, 5, seed=1), dt)
        d_weight, d_bias = copy(randn(9, 5, seed=2), wide(dt)), copy(randn(5, seed=3), wide(dt))
        ops.linear_bwd_dwdb(x, d_y, d_weight, d_bias)
        return [d_weight, d_bias]

    check_op(run, dtype)


def _starts(rows: int, context: int) -> Tensor:
    """Documents of every length: one of a single position, one that begins inside a tile, row 0 whole."""
    opens = torch.rand(rows, context, generator=torch.Generator().manual_seed(context)) < 0.12
    opens[0] = False
    index = torch.arange(context, dtype=torch.int32)
    return torch.where(opens, index, 0).cummax(1).values.to(torch.int32).to(DEVICE)


GPU_ALONE = pytest.mark.skipif(DEVICE.type == "cpu", reason="long, and for kernels without an interpreter")


# 1, 15, 17, 65: around the tiles of 16 and 32; head widths 5, 16 and 80: padded, exact, padded to 128; on a
# Hopper GPU 256, 1280 and 2048 of heads of 64 go to the kernels in Gluon, 384 does not; of 2048 the backward
# has more pieces of work than programs
@pytest.mark.parametrize(
    ("rows", "context", "heads", "head_width"),
    [
        (2, 1, 2, 16),
        (1, 15, 3, 5),
        (2, 17, 1, 16),
        (2, 65, 1, 5),
        (1, 33, 1, 80),
        pytest.param(3, 256, 5, 64, marks=GPU_ALONE),
        pytest.param(1, 384, 3, 64, marks=GPU_ALONE),
        pytest.param(2, 1280, 3, 64, marks=GPU_ALONE),
        pytest.param(3, 2048, 5, 64, marks=GPU_ALONE),
    ],
)
@pytest.mark.parametrize("documents", [False, True], ids=("whole", "documents"))
@pytest.mark.parametrize("rate", [0.0, 0.3], ids=("kept", "dropout"))
def test_attention(
    rows: int, context: int, heads: int, head_width: int, documents: bool, rate: float, dtype: torch.dtype
) -> None:
    if rate and context in (1, 17):
        pytest.skip("the mask is tested at the other lengths")
    width = heads * head_width
    starts = _starts(rows, context) if documents else None
    site = dropout(context, rate) if rate else None

    def run(ops: Any, copy: Callable[..., Tensor], dt: torch.dtype) -> list[Tensor]:
        qkv = copy(randn(rows, context, 3 * width), dt)
        d_out = copy(randn(rows, context, width, seed=1), dt)
        out, res = ops.attention_fwd(qkv, heads, starts, site)
        d_q, d_k, d_v = ops.attention_bwd(res, d_out, heads, site).split(width, 2)
        # one visible key each: the weights are constant and these gradients are zero up to rounding
        return [out, res.lse, d_v] if context == 1 else [out, res.lse, d_q, d_k, d_v]

    check_op(run, dtype)


# 257 and 1000: neither fills its padding, 257 has just one column past a multiple of 256
@pytest.mark.parametrize(("rows", "width", "vocab", "chunk"), [(1, 7, 257, None), (65, 48, 1000, 32)])
def test_cross_entropy(rows: int, width: int, vocab: int, chunk: int | None, dtype: torch.dtype) -> None:
    padded = -(-vocab // 128) * 128
    targets = torch.randint(0, vocab, (rows,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    targets[0], targets[2::9] = vocab - 1, -1
    targets = targets.to(DEVICE)

    def run(ops: Any, copy: Callable[..., Tensor], dt: torch.dtype) -> list[Tensor]:
        x, wte = copy(randn(rows, width), dt), copy(randn(padded, width, seed=1, scale=0.3), dt)
        wte[vocab:] = 0
        d_wte = copy(torch.zeros(padded, width, device=DEVICE), wide(dt))
        scale = copy(torch.tensor(1.0 / rows, device=DEVICE), wide(dt))
        nll, d_x = ops.linear_cross_entropy(x, wte, targets, vocab, scale, d_wte, chunk=chunk)
        return [nll, d_x, d_wte, ops.linear_nll(x, wte, targets, vocab, chunk=chunk)]

    def own(dt: torch.dtype) -> list[Tensor]:
        # by autograd: the reference keeps the gradient of the logits in float32, which torch's op does not
        x = randn(rows, width).to(dt).requires_grad_()
        wte = randn(padded, width, seed=1, scale=0.3).to(dt)
        wte[vocab:] = 0
        wte.requires_grad_()
        nll = F.cross_entropy(F.linear(x, wte)[:, :vocab], targets.long(), ignore_index=-1, reduction="none")
        d_x, d_wte = torch.autograd.grad(nll, (x, wte), torch.full_like(nll, 1.0 / rows))
        return [nll.detach(), d_x, d_wte, nll.detach()]

    *_, d_wte, _ = check_op(run, dtype, own)
    assert (d_wte[vocab:] == 0).all()


# runs within a block, across one border, across many blocks, and a last block that is not full
@pytest.mark.parametrize(
    ("rows", "context", "kind"), [(1, 1, "uniform"), (2, 37, "uniform"), (3, 17, "skewed"), (10, 16, "one")]
)
def test_embedding(rows: int, context: int, kind: str, dtype: torch.dtype) -> None:
    u = torch.rand(rows, context, generator=torch.Generator().manual_seed(3))
    share = {"uniform": u, "skewed": u**8, "one": torch.zeros_like(u)}[kind]
    tokens = (151 * share).to(torch.int32).to(DEVICE)
    positions = torch.arange(context, dtype=torch.int32, device=DEVICE).repeat(rows, 1)

    def run(ops: Any, copy: Callable[..., Tensor], dt: torch.dtype) -> list[Tensor]:
        wte, wpe = copy(randn(256, 21), dt), copy(randn(70, 21, seed=1), dt)
        d_x = copy(randn(rows * context, 21, seed=2), dt)
        grads = [copy(torch.ones(n, 21, device=DEVICE), wide(dt)) for n in (256, 70, 256, 70)]
        ops.embedding_bwd(tokens, positions, d_x, *grads[:2])
        ops.embedding_bwd(tokens, positions, d_x, *grads[2:], dropout(context))
        forward = [ops.embedding_fwd(tokens, positions, wte, wpe, site) for site in (None, dropout(context))]
        return [*forward, *grads]

    check_op(run, dtype)


def test_every_op_repeats_itself(dtype: torch.dtype) -> None:
    def run() -> list[Tensor]:
        x, d_y = randn(65, 48).to(dtype), randn(65, 96, seed=1).to(dtype)
        d_w, d_b, d_wte = (torch.ones(n, device=DEVICE) for n in ((48, 96), 96, (64, 48)))
        kernels.linear_bwd_dwdb(x, d_y, d_w, d_b)
        tokens = (torch.arange(65, dtype=torch.int32, device=DEVICE) % 3).view(1, 65)
        kernels.embedding_bwd(tokens, tokens, x, d_wte, d_wte)
        out, res = kernels.attention_fwd(x.view(1, 65, 48), 2, None, dropout(65))
        return [d_w, d_b, d_wte, out, kernels.attention_bwd(res, out, 2, dropout(65))]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)
