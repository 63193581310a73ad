"""Matrix products with what follows them in the same kernel, and the affine map made of them.

    C = epilogue(A B),     y = x W + b:     d_x = d_y W^T,   d_W = x^T d_y,   d_b = sum over rows of d_y

What follows a product, and the two kernels that compute it, stand in ``matmul_kernels``, a third in
``hopper.matmul``; here a product is described, its kernel chosen and launched. Weights are (in, out).

A weight gradient has few output tiles and a long K: K is split, each part is written in float32, and the
parts are added in order, so that a run repeats itself bit for bit. Shapes: M rows, N columns, K depth,
S parts of K.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from gpt_triton.dropout import Dropout
from gpt_triton.kernels.dropout import drop_into
from gpt_triton.kernels.matmul_kernels import Epilogue, descriptor_kernel, pointer_kernel
from gpt_triton.kernels.primitives import (
    INTERPRET,
    add_column_sums,
    add_partial_sums,
    has_tensor_descriptors,
    multiprocessors,
)
from gpt_triton.kernels.tiles import MatmulTiles, group_rows, matmul_tiles, on_tensor_cores_of_hopper


def linear_fwd(
    x: Float[Tensor, "M K"], weight: Float[Tensor, "K N"], bias: Float[Tensor, " N"] | None
) -> Float[Tensor, "M N"]:
    """Affine map of every row.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row, float32.
    """
    y = x.new_empty(x.shape[0], weight.shape[1])
    product(x.contiguous(), weight, y, Epilogue(bias=bias))
    return y


def linear_gelu_fwd(
    x: Float[Tensor, "M K"], weight: Float[Tensor, "K N"], bias: Float[Tensor, " N"], slope: bool = True
) -> tuple[Float[Tensor, "M N"], Float[Tensor, "M N"] | None]:
    """Affine map, then GELU; returns the output, and GELU's slope at the map's values.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row, float32.
        slope: Whether the slope is needed; ``None`` is returned if not.
    """
    y = x.new_empty(x.shape[0], weight.shape[1])
    slopes = torch.empty_like(y) if slope else None
    product(x.contiguous(), weight, y, Epilogue(bias=bias, gelu=True, slope=slopes))
    return y, slopes


def linear_residual_fwd(
    x: Float[Tensor, "M K"],
    weight: Float[Tensor, "K N"],
    bias: Float[Tensor, " N"],
    residual: Float[Tensor, "M N"],
    dropout: Dropout | None = None,
) -> Float[Tensor, "M N"]:
    """``residual + dropout(x W + b)``.

    Args:
        weight: Matrix, (in, out), in the dtype of ``x``.
        bias: Added to every row, float32.
    """
    y = x.new_empty(x.shape[0], weight.shape[1])
    residual = residual.contiguous()
    product(x.contiguous(), weight, y, Epilogue(bias=bias, residual=residual if dropout is None else None))
    if dropout is not None:
        # in the product's epilogue drawing the mask kept the tensor cores waiting longer than this pass takes
        drop_into(y, y, dropout, residual)
    return y


def linear_bwd_dx(d_y: Float[Tensor, "M N"], weight: Float[Tensor, "K N"]) -> Float[Tensor, "M K"]:
    """Gradient of the input.

    Args:
        weight: Matrix, (in, out), in the dtype of ``d_y``.
    """
    d_x = d_y.new_empty(d_y.shape[0], weight.shape[0])
    product(d_y.contiguous(), weight.T, d_x)
    return d_x


def linear_gelu_bwd_dx(
    d_y: Float[Tensor, "M N"],
    weight: Float[Tensor, "K N"],
    slope: Float[Tensor, "M K"],
) -> Float[Tensor, "M K"]:
    """Gradient of what GELU took, where its output was the map's input.

    Args:
        weight: Matrix, (in, out), in the dtype of ``d_y``.
    """
    d_pre = torch.empty_like(slope)
    product(d_y.contiguous(), weight.T, d_pre, Epilogue(factor=slope.contiguous()))
    return d_pre


def linear_bwd_dwdb(
    x: Float[Tensor, "M K"],
    d_y: Float[Tensor, "M N"],
    d_weight: Float[Tensor, "K N"],
    d_bias: Float[Tensor, " N"],
) -> None:
    """Gradients of matrix and bias, added in place.

    Args:
        d_weight: Added to, float32.
        d_bias: Added to, float32.
    """
    product(x.contiguous().T, d_y.contiguous(), d_weight, accumulate=True, column_sums=d_bias)


def product(
    a: Float[Tensor, "M K"],
    b: Float[Tensor, "K N"],
    out: Float[Tensor, "M N"],
    epilogue: Epilogue | None = None,
    accumulate: bool = False,
    column_sums: Float[Tensor, " N"] | None = None,
) -> None:
    """``out = epilogue(a b)``, or ``out += a b`` with K split where that fills the device.

    Args:
        a: Left operand; a transposed view is read in place.
        b: Right operand; a transposed view is read in place, in float32 copied.
        out: Contiguous; written, or added to.
        epilogue: What follows the product; not with ``accumulate``.
        accumulate: Add to ``out``, which is float32.
        column_sums: The sum over the rows of ``b`` is added to it, float32; only with ``accumulate``.
    """
    (m, k), n = a.shape, b.shape[1]
    epilogue = epilogue or Epilogue()
    if a.dtype == torch.float32:
        # read across, a weight halves the speed of the plain units: 20 against 43 TFLOP/s on an H200
        b = b.contiguous()
    # descriptors in the interpreter are for tests: pointers are its plainer path
    fast = not INTERPRET.value and a.dtype == torch.bfloat16 and has_tensor_descriptors(a.device)
    moved = (a, b, epilogue.factor, epilogue.residual, None if out.dtype == torch.float32 else out)
    fast = fast and all(_describable(t) for t in moved if t is not None)
    tiles = matmul_tiles(m, n, k, a.dtype, a.device, accumulate, epilogue.gelu, fast)
    parts = out.new_empty(tiles.splits, m, n) if tiles.splits > 1 else out
    into_out = accumulate and tiles.splits == 1
    if fast and on_tensor_cores_of_hopper(tiles, k, a.device):
        launch_hopper(a, b, parts, tiles, epilogue, into_out, column_sums)
    else:
        launch = launch_descriptors if fast else launch_pointers
        launch(a, b, parts, tiles, epilogue, into_out)
        if column_sums is not None:
            add_column_sums(b, column_sums)
    if tiles.splits > 1:
        add_partial_sums(parts.view(1, tiles.splits, -1), out.view(-1))


def launch_pointers(
    a: Float[Tensor, "M K"],
    b: Float[Tensor, "K N"],
    out: Float[Tensor, "*S M N"],
    tiles: MatmulTiles,
    epilogue: Epilogue,
    accumulate: bool,
) -> None:
    """The product by ``pointer_kernel``; arguments as in ``product``, with one output per part of K."""
    (m, k), n = a.shape, b.shape[1]
    grid = (triton.cdiv(m, tiles.block_m) * triton.cdiv(n, tiles.block_n), tiles.splits)
    pointer_kernel[grid](
        a, b, out, epilogue.slope, epilogue.factor, epilogue.bias, epilogue.residual,
        m, n, k, *a.stride(), *b.stride(),
        GELU=epilogue.gelu, ACCUMULATE=accumulate,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        SPLITS=tiles.splits, GROUP=group_rows(triton.cdiv(n, tiles.block_n)),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def launch_descriptors(
    a: Float[Tensor, "M K"],
    b: Float[Tensor, "K N"],
    out: Float[Tensor, "*S M N"],
    tiles: MatmulTiles,
    epilogue: Epilogue,
    accumulate: bool,
) -> None:
    """The product by ``descriptor_kernel``; arguments as in ``product``, with one output per part of K."""
    (m, k), n = a.shape, b.shape[1]
    halves = tiles.block_n > 128 or tiles.programs > 1
    store = [tiles.block_m, tiles.block_n // 2 if halves else tiles.block_n]
    # a float32 accumulator is read and added to: that goes through pointers
    by_descriptor = out.dtype != torch.float32
    a_desc, a_across = _describe(a, tiles.block_m, tiles.block_k)
    b_desc, b_across = _describe(b, tiles.block_k, tiles.block_n)
    out_desc, slope_desc, factor_desc = (
        TensorDescriptor.from_tensor(x, store) if x is not None and by_descriptor else None
        for x in (out, epilogue.slope, epilogue.factor)
    )
    tile_count = triton.cdiv(m, tiles.block_m) * triton.cdiv(n, tiles.block_n) * tiles.splits
    descriptor_kernel[(min(tile_count, tiles.programs * multiprocessors(a.device)),)](
        a_desc, b_desc, out, out_desc, epilogue.slope, slope_desc, epilogue.factor, factor_desc,
        epilogue.bias, epilogue.residual, m, n, k,
        A_ACROSS=a_across, B_ACROSS=b_across, GELU=epilogue.gelu, ACCUMULATE=accumulate,
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        SPLITS=tiles.splits, GROUP=group_rows(triton.cdiv(n, tiles.block_n)), HALVES=halves,
        DTYPE=tl.bfloat16 if out.dtype == torch.bfloat16 else tl.float32,
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip


def launch_hopper(
    a: Float[Tensor, "M K"],
    b: Float[Tensor, "K N"],
    out: Float[Tensor, "*S M N"],
    tiles: MatmulTiles,
    epilogue: Epilogue,
    accumulate: bool,
    column_sums: Float[Tensor, " N"] | None = None,
) -> None:
    """The product by Hopper's kernel; arguments as in ``product``, with one output per part of K."""
    # imported where it runs: Gluon has no interpreter
    from gpt_triton.kernels.hopper import matmul as hopper

    rows, columns, depth = hopper.ROWS.value, hopper.COLUMNS.value, hopper.DEPTH.value
    (m, k), n = a.shape, b.shape[1]
    a_across, b_across = a.stride(1) != 1, b.stride(1) != 1
    extra = epilogue.factor if epilogue.residual is None else epilogue.residual
    out_desc, extra_desc = (
        None
        if x is None or out.dtype == torch.float32
        else hopper.described(x, hopper.HALF.value, hopper.PART.value)
        for x in (out, extra)
    )
    m_tiles, n_tiles = triton.cdiv(m, rows), triton.cdiv(n, columns)
    sums = None if column_sums is None else column_sums.new_empty(1, tiles.splits * m_tiles, n)
    hopper.hopper_kernel[(min(m_tiles * n_tiles * tiles.splits, multiprocessors(a.device)),)](
        hopper.described(a.T, depth, rows) if a_across else hopper.described(a, rows, depth),
        hopper.described(b.T, columns, depth) if b_across else hopper.described(b, depth, columns),
        out, out_desc, extra_desc, epilogue.bias, sums, m, n,
        triton.cdiv(triton.cdiv(k, depth), tiles.splits), tiles.splits,
        A_ACROSS=a_across, B_ACROSS=b_across, ACCUMULATE=accumulate,
        EXTRA="none" if extra is None else "factor" if epilogue.residual is None else "residual",
        GROUP=group_rows(n_tiles), STAGES=4 if out_desc is None else 3, num_warps=4,
    )  # fmt: skip
    if sums is not None and column_sums is not None:
        add_partial_sums(sums, column_sums)


def _describable(x: Float[Tensor, "R C"]) -> bool:
    """True if one axis is contiguous and the other's stride and the start are multiples of 16 bytes."""
    x = x if x.stride(1) == 1 else x.T
    bytes_per_row = x.stride(0) * x.element_size()
    return x.stride(1) == 1 and bytes_per_row % 16 == 0 and x.data_ptr() % 16 == 0


def _describe(x: Float[Tensor, "R C"], rows: int, columns: int) -> tuple[TensorDescriptor, bool]:
    """Descriptor of a matrix, or of its transpose where that is the contiguous one; True for the latter."""
    if x.stride(1) == 1:
        return TensorDescriptor.from_tensor(x, [rows, columns]), False
    return TensorDescriptor.from_tensor(x.T, [columns, rows]), True
