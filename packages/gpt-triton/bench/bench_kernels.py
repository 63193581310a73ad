"""Check every kernel on this GPU against float64, then time it beside torch's own op.

The check comes first, and no time is reported for an op that fails it. Outputs are poisoned with NaN;
errors are relative Frobenius norms against the reference in float64. The rule: float32 within 1e-5;
bfloat16 within twice the error of the same reference run in bfloat16 by torch. Times are medians over
replays of a CUDA graph (CUDA events where the capture fails). Results are written to a JSON file after
every op.

    python packages/gpt-triton/bench/bench_kernels.py [--rows 64 32] [--only attention] [--no-check]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import triton
from gpt_trainer.backend import OptimizerConfig
from gpt_triton import kernels, reference
from gpt_triton.residuals import Dropout
from torch import Tensor

Run = Callable[[Any, torch.dtype], list[Tensor]]
DEVICE = torch.device("cuda")
WIDTH, HEADS, VOCAB, PADDED = 768, 12, 50257, 50304
RESULTS: dict[str, Any] = {"checks": [], "times": []}


class Cases:
    """Named runs of each op on fixed inputs: ``run(ops, dtype)`` gives the op's outputs.

    The inputs are drawn once and rounded to ``rounded``, so that every precision sees the same numbers.
    """

    def __init__(self, rounded: torch.dtype) -> None:
        self.rounded = rounded
        self.generator = torch.Generator(DEVICE).manual_seed(1)
        self.drop = Dropout(0.2, torch.tensor([123456789, 4000000000], device=DEVICE))

    def new(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers, already rounded."""
        x = torch.randn(shape, generator=self.generator, device=DEVICE) * scale
        return x.to(self.rounded).float()

    def ids(self, high: int, *shape: int) -> Tensor:
        """Token ids."""
        return torch.randint(0, high, shape, generator=self.generator, device=DEVICE, dtype=torch.int32)

    def rowwise(self, rows: int, width: int) -> Iterator[tuple[str, Run]]:
        """LayerNorm, GELU and dropout."""
        x, d_y, skip = (self.new(rows, width) for _ in range(3))
        gain, bias = (torch.randn(width, generator=self.generator, device=DEVICE) for _ in range(2))

        def norm(ops: Any, dt: torch.dtype) -> list[Tensor]:
            wide = torch.float64 if dt == torch.float64 else torch.float32
            y, res = ops.layer_norm_fwd(x.to(dt), gain.to(wide), bias.to(wide))
            d_gain, d_bias = (torch.ones(width, dtype=wide, device=DEVICE) for _ in range(2))
            d_x = ops.layer_norm_bwd(res, gain.to(wide), d_y.to(dt), d_gain, d_bias, skip.to(dt))
            return [y, d_x, d_gain, d_bias]

        yield f"layer_norm {rows}x{width}", norm
        yield (
            f"gelu, dropout {rows}x{width}",
            lambda ops, dt: [
                ops.gelu_fwd(x.to(dt)),
                ops.gelu_bwd(x.to(dt), d_y.to(dt)),
                ops.dropout_fwd(x.to(dt), self.drop),
            ],
        )

    def linear(self, rows: int, n_in: int, n_out: int) -> Iterator[tuple[str, Run]]:
        """The affine map and its epilogues, forward and backward."""
        x, pre = self.new(rows, n_in), self.new(rows, n_in)
        d_y, residual = self.new(rows, n_out), self.new(rows, n_out)
        weight, bias = self.new(n_in, n_out, scale=n_in**-0.5), self.new(n_out)

        def run(ops: Any, dt: torch.dtype) -> list[Tensor]:
            wide = torch.float64 if dt == torch.float64 else torch.float32
            a, w, b, g = x.to(dt), weight.to(dt), bias.to(wide), d_y.to(dt)
            d_w = torch.ones(n_in, n_out, dtype=wide, device=DEVICE)
            d_b = torch.ones(n_out, dtype=wide, device=DEVICE)
            ops.linear_bwd_dwdb(a, g, d_w, d_b)
            return [
                ops.linear_fwd(a, w, b),
                ops.linear_fwd(a, w, None),
                *ops.linear_gelu_fwd(a, w, b),
                ops.linear_residual_fwd(a, w, b, residual.to(dt)),
                ops.linear_residual_fwd(a, w, b, residual.to(dt), self.drop),
                ops.linear_bwd_dx(g, w),
                ops.linear_bwd_dx(g, w, pre.to(dt)),
                d_w,
                d_b,
            ]

        yield f"linear {rows}x{n_in}x{n_out}", run

    def attention(self, rows: int, context: int, heads: int, head_width: int) -> Iterator[tuple[str, Run]]:
        """With and without documents, with and without dropout."""
        width = heads * head_width
        qkv, d_out = self.new(rows, context, 3 * width), self.new(rows, context, width)
        begins = torch.rand(rows, context, generator=self.generator, device=DEVICE) < 4.0 / context
        index = torch.arange(context, dtype=torch.int32, device=DEVICE)
        starts = torch.where(begins, index, 0).cummax(1).values.to(torch.int32)
        for segments in (None, starts):
            for site in (None, self.drop):

                def run(
                    ops: Any, dt: torch.dtype, segments: Any = segments, site: Any = site
                ) -> list[Tensor]:
                    out, res = ops.attention_fwd(qkv.to(dt), heads, segments, site)
                    d_qkv = ops.attention_bwd(res, d_out.to(dt), heads, site)
                    return [out, res.lse, *d_qkv.split(width, 2)]

                note = f"{' documents' if segments is not None else ''}{' dropout' if site else ''}"
                yield f"attention {rows}x{context} {heads}x{head_width}{note}", run

    def head(self, rows: int, width: int, vocab: int, padded: int) -> Iterator[tuple[str, Run]]:
        """Output head with cross-entropy, and the embedding on the same table."""
        x, wte = self.new(rows, width), self.new(padded, width, scale=0.3)
        wte[vocab:] = 0
        targets, scale = self.ids(vocab, rows), torch.tensor(1.0 / rows, device=DEVICE)
        targets[::7] = -1

        def run(ops: Any, dt: torch.dtype) -> list[Tensor]:
            wide = torch.float64 if dt == torch.float64 else torch.float32
            d_wte = torch.zeros(padded, width, dtype=wide, device=DEVICE)
            a, w = x.to(dt), wte.to(dt)
            nll, d_x = ops.linear_cross_entropy(a, w, targets, vocab, scale.to(wide), d_wte)
            return [nll, d_x, d_wte, ops.linear_nll(a, w, targets, vocab)]

        yield f"cross_entropy {rows}x{width}x{vocab}", run

    def embedding(self, rows: int, context: int, width: int, vocab: int) -> Iterator[tuple[str, Run]]:
        """Ids as skewed as text: a few make up half of all."""
        u = torch.rand(rows, context, generator=self.generator, device=DEVICE)
        tokens = (vocab * u**6).to(torch.int32)
        positions = torch.arange(context, dtype=torch.int32, device=DEVICE).repeat(rows, 1)
        wte, wpe, d_x = self.new(vocab, width), self.new(context, width), self.new(rows * context, width)

        def run(ops: Any, dt: torch.dtype) -> list[Tensor]:
            wide = torch.float64 if dt == torch.float64 else torch.float32
            grads = [torch.ones_like(t, dtype=wide) for t in (wte, wpe, wte, wpe)]
            ops.embedding_bwd(tokens, positions, d_x.to(dt), *grads[:2])
            ops.embedding_bwd(tokens, positions, d_x.to(dt), *grads[2:], self.drop)
            tables = wte.to(dt), wpe.to(dt)
            return [
                ops.embedding_fwd(tokens, positions, *tables),
                ops.embedding_fwd(tokens, positions, *tables, self.drop),
                *grads,
            ]

        yield f"embedding {rows}x{context}x{width} of {vocab}", run

    def optimizer(self, count: int) -> Iterator[tuple[str, Run]]:
        """Norm and AdamW."""
        state = [torch.randn(count, generator=self.generator, device=DEVICE) for _ in range(4)]
        state[3] = state[3].abs()

        def run(ops: Any, dt: torch.dtype) -> list[Tensor]:
            wide = torch.float64 if dt == torch.float64 else torch.float32
            w, g, m, v = (t.to(wide, copy=True) for t in state)
            norm = ops.global_norm(g)
            hyper = torch.tensor([1e-2, 0.1, 0.05, 1e9], device=DEVICE, dtype=wide)
            ops.adamw_update(w, g, m, v, None, count // 3, norm, hyper, OptimizerConfig())
            return [norm, w, m, v]

        yield f"adamw {count}", run

    def small(self) -> Iterator[tuple[str, Run]]:
        """Odd sizes: on both sides of tiles, one row, nothing a power of two."""
        yield from self.rowwise(65, 7)
        yield from self.rowwise(1, 768)
        yield from self.linear(65, 48, 257)
        yield from self.linear(129, 136, 264)
        yield from self.attention(3, 65, 3, 7)
        yield from self.attention(2, 257, 2, 64)
        yield from self.attention(1, 130, 2, 128)
        yield from self.head(65, 48, 1000, 1024)
        yield from self.embedding(3, 67, 48, 1000)
        yield from self.optimizer(100003)

    def large(self) -> Iterator[tuple[str, Run]]:
        """GPT-2 124M, 8 rows of 1,024 tokens."""
        tokens = 8 * 1024
        yield from self.rowwise(tokens, WIDTH)
        for n_in, n_out in ((1, 1), (1, 3), (1, 4), (4, 1)):
            yield from self.linear(tokens, n_in * WIDTH, n_out * WIDTH)
        yield from self.attention(8, 1024, HEADS, 64)
        yield from self.head(tokens, WIDTH, VOCAB, PADDED)
        yield from self.embedding(8, 1024, WIDTH, PADDED)
        yield from self.optimizer(124_475_904)


def relative(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius error, in float64; infinite if anything is not finite."""
    got, want = got.double(), want.double()
    error = float((got - want).norm() / want.norm().clamp(min=1e-30))
    return error if math.isfinite(error) else math.inf


def check(only: str, sizes: str) -> bool:
    """Every op in both dtypes against float64; prints one line each."""
    fine = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    for dtype in (torch.float32, torch.bfloat16):
        for name, run in getattr(Cases(dtype), sizes)():
            if only not in name:
                continue
            start = time.perf_counter()
            try:
                want = run(reference, torch.float64)
                got = run(kernels, dtype)
                again = run(kernels, dtype)
                errors = [relative(a, b) for a, b in zip(got, want, strict=True)]
                limits = [1e-5] * len(errors)
                if dtype == torch.bfloat16:
                    plain = run(reference, dtype)
                    limits = [max(1e-5, 2 * relative(a, b)) for a, b in zip(plain, want, strict=True)]
                same = all(torch.equal(a, b) for a, b in zip(got, again, strict=True))
                passed = same and all(e <= limit for e, limit in zip(errors, limits, strict=True))
                note = " ".join(f"{e:.1e}/{limit:.0e}" for e, limit in zip(errors, limits, strict=True))
                note += "" if same else "  DIFFERS FROM RUN TO RUN"
            except Exception as error:  # noqa: BLE001  # one broken op must not hide the others
                passed, note = False, f"{type(error).__name__}: {str(error)[:400]}"
            fine &= passed
            kind = str(dtype).removeprefix("torch.")
            RESULTS["checks"].append({"op": name, "dtype": kind, "passed": passed, "errors": note})
            seconds = time.perf_counter() - start
            print(f"{'ok  ' if passed else 'FAIL'} {kind:8s} {name:42s} {seconds:5.1f} s  {note}", flush=True)
    torch.use_deterministic_algorithms(False)
    return fine


def milliseconds(run: Callable[[], Any], graph: bool = True) -> float:
    """Median time of one call: by graph replays, so that launches from Python do not count."""
    run()
    torch.cuda.synchronize()
    if not graph:
        return float(triton.testing.do_bench(run, rep=60, return_mode="median"))
    try:
        return float(triton.testing.do_bench_cudagraph(run, rep=60, return_mode="median"))
    except Exception as error:  # noqa: BLE001
        print(f"  (not captured: {str(error)[:120]})")
        torch.cuda.synchronize()
        return float(triton.testing.do_bench(run, rep=60, return_mode="median"))


def time_pair(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any] | None,
    note: str = "",
    graph: bool = True,
) -> None:
    """Time an op beside torch's and print one row; above 1: ours is faster."""
    try:
        a = milliseconds(ours)
    except Exception as error:  # noqa: BLE001
        print(f"{name:46s} FAILED: {type(error).__name__}: {str(error)[:300]}", flush=True)
        RESULTS["times"].append({"op": name, "error": str(error)[:300]})
        return
    b = math.nan if theirs is None else milliseconds(theirs, graph)
    RESULTS["times"].append({"op": name, "ms": a, "torch_ms": None if math.isnan(b) else b, "note": note})
    print(f"{name:46s} {a:8.3f} ms  torch {b:8.3f} ms  ratio {b / a:5.2f}  {note}", flush=True)


def time_ops(rows: int, only: str) -> None:
    """Every op at GPT-2 124M, bfloat16, beside torch's."""
    bf16, f32, context = torch.bfloat16, torch.float32, 1024
    tokens = rows * context
    k = kernels

    def new(*shape: int, dtype: torch.dtype = bf16) -> Tensor:
        return (torch.randn(shape, device=DEVICE) * 0.3).to(dtype)

    if only in "linear matmul":
        for label, n_in, n_out in (("qkv", 1, 3), ("out", 1, 1), ("fc", 1, 4), ("fc out", 4, 1)):
            n_in, n_out = n_in * WIDTH, n_out * WIDTH
            x, w, b, d_y = new(tokens, n_in), new(n_in, n_out), new(n_out, dtype=f32), new(tokens, n_out)
            d_w, d_b = new(n_in, n_out, dtype=f32), new(n_out, dtype=f32)
            y, d_x = torch.empty_like(d_y), torch.empty_like(x)
            b16, d_w16 = b.bfloat16(), d_w.bfloat16()
            time_pair(
                f"{label} forward {tokens}x{n_in}x{n_out}",
                lambda x=x, w=w, b=b: k.linear_fwd(x, w, b),
                lambda x=x, w=w, b16=b16, y=y: torch.addmm(b16, x, w, out=y),
            )
            if label == "fc":
                time_pair(
                    "fc forward + GELU",
                    lambda x=x, w=w, b=b: k.linear_gelu_fwd(x, w, b),
                    lambda x=x, w=w, b16=b16: F.gelu(torch.addmm(b16, x, w), approximate="tanh"),
                )
            if "out" in label:
                time_pair(
                    f"{label} forward + residual",
                    lambda x=x, w=w, b=b, d_y=d_y: k.linear_residual_fwd(x, w, b, d_y),
                    lambda x=x, w=w, b16=b16, d_y=d_y: torch.addmm(b16, x, w).add_(d_y),
                )
                site = Dropout(0.1, torch.tensor([1, 2], device=DEVICE))
                time_pair(
                    f"{label} forward + dropout + residual",
                    lambda x=x, w=w, b=b, d_y=d_y, site=site: k.linear_residual_fwd(x, w, b, d_y, site),
                    None,
                )
            time_pair(
                f"{label} dX",
                lambda d_y=d_y, w=w: k.linear_bwd_dx(d_y, w),
                lambda d_y=d_y, w=w, d_x=d_x: torch.mm(d_y, w.T, out=d_x),
            )
            if label == "fc out":
                time_pair(
                    "fc out dX * GELU'",
                    lambda d_y=d_y, w=w, x=x: k.linear_bwd_dx(d_y, w, x),
                    lambda d_y=d_y, w=w, x=x: torch.ops.aten.gelu_backward(d_y @ w.T, x, approximate="tanh"),
                )
            time_pair(
                f"{label} dW",
                lambda x=x, d_y=d_y, d_w=d_w: k.linear_bwd_dwdb(x, d_y, d_w, None),
                lambda x=x, d_y=d_y, d_w16=d_w16: torch.mm(x.T, d_y, out=d_w16),
                "torch's in bfloat16",
            )
            time_pair(
                f"{label} dW and db",
                lambda x=x, d_y=d_y, d_w=d_w, d_b=d_b: k.linear_bwd_dwdb(x, d_y, d_w, d_b),
                lambda x=x, d_y=d_y, d_w16=d_w16: (torch.mm(x.T, d_y, out=d_w16), d_y.sum(0)),
            )
    if only in "attention":
        time_attention(rows, context)
    if only in "layer_norm gelu":
        x, d_y, gain, bias = (
            new(tokens, WIDTH),
            new(tokens, WIDTH),
            new(WIDTH, dtype=f32),
            new(WIDTH, dtype=f32),
        )
        _, res = k.layer_norm_fwd(x, gain, bias)
        g16, b16 = gain.bfloat16(), bias.bfloat16()
        time_pair(
            "LayerNorm forward",
            lambda: k.layer_norm_fwd(x, gain, bias),
            lambda: F.layer_norm(x, [WIDTH], g16, b16),
        )
        _, mean, rstd = torch.native_layer_norm(x, [WIDTH], g16, b16, 1e-5)
        time_pair(
            "LayerNorm backward",
            lambda: k.layer_norm_bwd(res, gain, d_y, gain, bias),
            lambda: torch.ops.aten.native_layer_norm_backward(
                d_y, x, [WIDTH], mean, rstd, g16, b16, [True] * 3
            ),
        )
        time_pair("LayerNorm backward + skip", lambda: k.layer_norm_bwd(res, gain, d_y, gain, bias, x), None)
        wide = new(tokens, 4 * WIDTH)
        time_pair("GELU forward", lambda: k.gelu_fwd(wide), lambda: F.gelu(wide, approximate="tanh"))
    if only in "cross_entropy head":
        time_head(tokens)
    if only in "embedding":
        ids = (PADDED * torch.rand(rows, context, device=DEVICE) ** 6).to(torch.int32)
        at = torch.arange(context, dtype=torch.int32, device=DEVICE).repeat(rows, 1)
        wte, wpe, d_x = new(PADDED, WIDTH), new(context, WIDTH), new(tokens, WIDTH)
        grads = new(PADDED, WIDTH, dtype=f32), new(context, WIDTH, dtype=f32)
        time_pair(
            "embedding forward",
            lambda: k.embedding_fwd(ids, at, wte, wpe),
            lambda: F.embedding(ids, wte) + F.embedding(at, wpe),
        )
        time_pair("embedding backward", lambda: k.embedding_bwd(ids, at, d_x, *grads), None)
        same = torch.full_like(ids, 7)
        time_pair("embedding backward, one id", lambda: k.embedding_bwd(same, at, d_x, *grads), None)
        time_pair("sort of the ids alone", lambda: torch.sort(ids.view(-1), stable=True), None)
    if only in "adamw":
        count = 124_475_904
        w, g, m, v = (new(count, dtype=f32).abs_() for _ in range(4))
        shadow, hyper = w.bfloat16(), torch.tensor([1e-4, 0.1, 0.05, 1e9], device=DEVICE)
        norm = k.global_norm(g)
        time_pair("global norm", lambda: k.global_norm(g), lambda: torch.linalg.vector_norm(g))
        parameter = torch.nn.Parameter(w.clone())
        parameter.grad = g
        optimizer = torch.optim.AdamW([parameter], lr=1e-4, fused=True, capturable=True)
        time_pair(
            "AdamW",
            lambda: k.adamw_update(w, g, m, v, shadow, count // 2, norm, hyper, OptimizerConfig()),
            optimizer.step,
            "torch's without clipping and without the bfloat16 copy",
        )


def time_attention(rows: int, context: int) -> None:
    """Attention of one layer beside torch's SDPA, in its best backend."""
    qkv = torch.randn(rows, context, 3 * WIDTH, device=DEVICE, dtype=torch.bfloat16)
    d_out = torch.randn(rows, context, WIDTH, device=DEVICE, dtype=torch.bfloat16)
    q, key, v = (
        t.unflatten(2, (HEADS, 64)).transpose(1, 2).detach().requires_grad_() for t in qkv.split(WIDTH, 2)
    )
    d_heads = d_out.unflatten(2, (HEADS, 64)).transpose(1, 2)
    flops = 4 * rows * HEADS * context * context * 64 / 2
    _, res = kernels.attention_fwd(qkv, HEADS, None)
    for backend in ("CUDNN_ATTENTION", "FLASH_ATTENTION"):
        with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
            out = F.scaled_dot_product_attention(q, key, v, is_causal=True)

            def forward() -> Tensor:
                with torch.no_grad():
                    return F.scaled_dot_product_attention(q, key, v, is_causal=True)

            def backward(out: Tensor = out) -> Any:
                return torch.autograd.grad(out, (q, key, v), d_heads, retain_graph=True)

            time_pair("attention forward", lambda: kernels.attention_fwd(qkv, HEADS, None), forward, backend)
            ours = RESULTS["times"][-1].get("ms", math.nan)
            print(f"  ours {flops / ours / 1e9:.0f} TFLOP/s")
            time_pair(
                "attention backward", lambda: kernels.attention_bwd(res, d_out, HEADS), backward, backend
            )
    index = torch.arange(context, dtype=torch.int32, device=DEVICE)
    starts = (index // 200 * 200).repeat(rows, 1)
    _, packed = kernels.attention_fwd(qkv, HEADS, starts)
    time_pair("attention forward, documents of 200", lambda: kernels.attention_fwd(qkv, HEADS, starts), None)
    time_pair(
        "attention backward, documents of 200", lambda: kernels.attention_bwd(packed, d_out, HEADS), None
    )
    site = Dropout(0.1, torch.tensor([1, 2], device=DEVICE))
    time_pair("attention forward, dropout", lambda: kernels.attention_fwd(qkv, HEADS, None, site), None)
    time_pair("attention backward, dropout", lambda: kernels.attention_bwd(res, d_out, HEADS, site), None)


def time_head(tokens: int) -> None:
    """Head and loss, whole and by parts."""
    from gpt_triton.kernels.cross_entropy import _cross_entropy
    from gpt_triton.kernels.matmul import product
    from gpt_triton.kernels.tiles import cross_entropy_chunk

    x = torch.randn(tokens, WIDTH, device=DEVICE, dtype=torch.bfloat16)
    wte = (torch.randn(PADDED, WIDTH, device=DEVICE) * 0.02).bfloat16()
    targets = torch.randint(0, VOCAB, (tokens,), device=DEVICE, dtype=torch.int32)
    scale, d_wte = torch.tensor(1.0 / tokens, device=DEVICE), torch.zeros(PADDED, WIDTH, device=DEVICE)
    chunk = min(tokens, cross_entropy_chunk(tokens, PADDED, DEVICE))
    logits = torch.empty(chunk, PADDED, device=DEVICE, dtype=torch.bfloat16)
    part, d_part, nll = (
        x[:chunk],
        torch.empty(chunk, WIDTH, device=DEVICE, dtype=torch.bfloat16),
        torch.empty(chunk, device=DEVICE),
    )
    d_wte16 = d_wte.bfloat16()
    note = f"chunk of {chunk}"
    time_pair(
        "head forward", lambda: product(part, wte.T, logits), lambda: torch.mm(part, wte.T, out=logits), note
    )
    time_pair(
        "head dX", lambda: product(logits, wte, d_part), lambda: torch.mm(logits, wte, out=d_part), note
    )
    time_pair(
        "head dW",
        lambda: product(logits.T, part, d_wte, accumulate=True),
        lambda: torch.mm(logits.T, part, out=d_wte16),
        note,
    )
    valid = targets[:chunk].long()
    time_pair(
        "softmax and its gradient, in place",
        lambda: _cross_entropy(logits, targets[:chunk], nll, VOCAB, scale),
        lambda: F.cross_entropy(logits, valid, reduction="none"),
        f"{note}; torch's forward only",
    )
    time_pair(
        "head + loss, whole", lambda: kernels.linear_cross_entropy(x, wte, targets, VOCAB, scale, d_wte), None
    )


def main() -> int:
    """Check, then time; 1 if a check failed."""
    parser = argparse.ArgumentParser(description="Check and time every kernel on this GPU.")
    parser.add_argument("--out", type=Path, default=Path("kernels.json"))
    parser.add_argument("--rows", type=int, nargs="*", default=[64])
    parser.add_argument("--only", default="", help="part of an op's name")
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*deterministic.*")
    torch.backends.cuda.matmul.allow_tf32 = False
    RESULTS["device"] = torch.cuda.get_device_name()
    RESULTS["versions"] = {"torch": torch.__version__, "triton": triton.__version__}
    print(RESULTS["device"], RESULTS["versions"])
    fine = True
    for sizes in () if args.no_check else ("small", "large"):
        fine &= check(args.only, sizes)
        args.out.write_text(json.dumps(RESULTS, indent=1))
    for rows in () if args.no_time else args.rows:
        print(f"\nB={rows}, T=1024, bfloat16")
        RESULTS["times"].append({"op": f"B={rows}"})
        time_ops(rows, args.only)
        args.out.write_text(json.dumps(RESULTS, indent=1))
        ratios = [t["torch_ms"] / t["ms"] for t in RESULTS["times"] if t.get("torch_ms")]
        print(f"median ratio {statistics.median(ratios):.2f}" if ratios else "")
    print("all checks passed" if fine else "SOME CHECKS FAILED")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
