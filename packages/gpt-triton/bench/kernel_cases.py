"""Every op on fixed inputs, for a check: at odd sizes, and at those of GPT-2 124M."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from gpt_trainer.backend import OptimizerConfig
from gpt_triton.dropout import Dropout
from torch import Tensor

Run = Callable[[Any, torch.dtype], list[Tensor]]
DEVICE = torch.device("cuda")
WIDTH, HEADS, VOCAB, PADDED = 768, 12, 50257, 50304


class Cases:
    """Named runs of each op on fixed inputs: ``run(ops, dtype)`` gives the op's outputs.

    The inputs are drawn once and rounded to ``rounded``, so that every precision sees the same numbers.
    """

    def __init__(self, rounded: torch.dtype) -> None:
        self.rounded = rounded
        self.generator = torch.Generator(DEVICE).manual_seed(1)
        self.key = torch.tensor([123456789, 4000000000, 5], device=DEVICE)

    def drop(self, context: int) -> Dropout:
        """A mask of rows of so many positions."""
        return Dropout(0.2, self.key, context)

    def new(self, *shape: int, scale: float = 1.0) -> Tensor:
        """Normal numbers, already rounded."""
        x = torch.randn(shape, generator=self.generator, device=DEVICE) * scale
        return x.to(self.rounded).float()

    def ids(self, high: int, *shape: int) -> Tensor:
        """Token ids."""
        return torch.randint(0, high, shape, generator=self.generator, device=DEVICE, dtype=torch.int32)

    def rowwise(self, rows: int, width: int) -> Iterator[tuple[str, Run]]:
        """LayerNorm and dropout."""
        x, d_y, skip = (self.new(rows, width) for _ in range(3))
        gain, bias = (torch.randn(width, generator=self.generator, device=DEVICE) for _ in range(2))

        def norm(ops: Any, dt: torch.dtype) -> list[Tensor]:
            wide = torch.float64 if dt == torch.float64 else torch.float32
            y, res = ops.layer_norm_fwd(x.to(dt), gain.to(wide), bias.to(wide))
            sums = [torch.ones(width, dtype=wide, device=DEVICE) for _ in range(2)]
            d_x = ops.layer_norm_bwd(res, gain.to(wide), d_y.to(dt), *sums, skip.to(dt))
            return [y, d_x, *sums]

        yield f"layer_norm {rows}x{width}", norm
        yield f"dropout {rows}x{width}", lambda ops, dt: [ops.dropout_fwd(x.to(dt), self.drop(rows))]

    def linear(self, rows: int, n_in: int, n_out: int) -> Iterator[tuple[str, Run]]:
        """The affine map and its epilogues, forward and backward."""
        x, slope = self.new(rows, n_in), self.new(rows, n_in)
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
                ops.linear_gelu_fwd(a, w, b, False)[0],
                ops.linear_residual_fwd(a, w, b, residual.to(dt)),
                ops.linear_residual_fwd(a, w, b, residual.to(dt), self.drop(rows)),
                ops.linear_bwd_dx(g, w),
                ops.linear_gelu_bwd_dx(g, w, slope.to(dt)),
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
            for site in (None, self.drop(context)):

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
            ops.embedding_bwd(tokens, positions, d_x.to(dt), *grads[2:], self.drop(context))
            tables = wte.to(dt), wpe.to(dt)
            return [
                ops.embedding_fwd(tokens, positions, *tables),
                ops.embedding_fwd(tokens, positions, *tables, self.drop(context)),
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
            scalars = torch.tensor([1e-2, 0.1, 0.05, 1e9], device=DEVICE, dtype=wide)
            ops.adamw_update(w, g, m, v, None, count // 3, norm, scalars, OptimizerConfig())
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
