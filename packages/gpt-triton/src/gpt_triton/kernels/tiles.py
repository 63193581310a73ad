"""How products and attention are cut: a pure function of shape, dtype and device.

Tiles of the other kernels, and what Hopper's have built in, stand with them. Nothing is tuned at run time,
so that a run repeats itself bit for bit. Figures in the comments are for Hopper (132 multiprocessors, 227 KiB
of shared memory and 65,536 registers each).
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton

from gpt_triton.kernels.primitives import INTERPRET, has_tensor_descriptors, is_hopper, multiprocessors

SHARED_BYTES = 227 * 1024


class MatmulTiles(NamedTuple):
    """How a product ``[M, K] x [K, N]`` is cut.

    Attributes:
        block_m: Rows of an output tile.
        block_n: Columns of an output tile.
        block_k: Depth of one step of the inner loop.
        warps: Warps of a program.
        stages: Tiles in flight.
        splits: Parts of K, summed in a fixed order afterwards.
        programs: Programs on a multiprocessor: with two, one multiplies while the other's epilogue runs.
    """

    block_m: int
    block_n: int
    block_k: int
    warps: int
    stages: int
    splits: int = 1
    programs: int = 1


class AttentionTiles(NamedTuple):
    """How attention is cut: the tile that stays and the tile that streams past it.

    Attributes:
        stay: Rows that a program owns (queries in the forward and for d_q, keys for d_k and d_v).
        stream: Rows taken per step of its loop.
        warps: Warps of a program.
        stages: Tiles in flight.
    """

    stay: int
    stream: int
    warps: int
    stages: int


def on_tensor_cores_of_hopper(tiles: MatmulTiles, k: int, device: torch.device) -> bool:
    """True where a product of bfloat16 through descriptors runs by the kernel written for Hopper.

    Args:
        tiles: As chosen: 128 x 256, which that kernel has built in.
        k: Depth: at least eight steps, during which its epilogue's buffer is filled.
    """
    return is_hopper(device) and (tiles.block_m, tiles.block_n) == (128, 256) and k >= 512 * tiles.splits


@functools.cache
def matmul_tiles(
    m: int,
    n: int,
    k: int,
    dtype: torch.dtype,
    device: torch.device,
    split: bool,
    gelu: bool = False,
    described: bool = True,
) -> MatmulTiles:
    """Tiles of one product.

    Args:
        split: True if K may be split (weight gradients: few output tiles, long K).
        gelu: True if GELU follows.
        described: True if the tiles are loaded through descriptors, where the device has them.
    """
    if INTERPRET.value:
        # an operation costs some 20 microseconds whatever its size: few, large tiles
        splits = min(3, triton.cdiv(k, 64)) if split else 1
        return MatmulTiles(64, 64, 64, 1, 1, splits)
    if dtype == torch.float32:
        # true float32 runs on the plain units: a thread keeps 64 sums, and four warps wait less than eight
        candidates = [MatmulTiles(64, 128, 32, 4, 2) if m > 64 else MatmulTiles(64, 64, 16, 4, 3)]
    elif not has_tensor_descriptors(device):
        # Ampere and Ada: within 99 KiB of shared memory and the registers of 8 warps
        candidates = [MatmulTiles(128, 128, 32, 8, 4)]
        if m <= 64:
            candidates = [MatmulTiles(64, 128, 32, 4, 4)]
    else:
        # 128x256 reads 1.5 bytes per 256 multiply-adds, the least that fits the registers of 8 warps
        candidates = [MatmulTiles(128, 256, 64, 8, 3), MatmulTiles(128, 128, 64, 8, 4)]
        if gelu and described:
            candidates = [MatmulTiles(128, 128, 64, 4, 3, programs=2)]
        if m <= 64:
            candidates = [MatmulTiles(64, 128, 64, 4, 4)]
    plans = [t._replace(splits=s) for t in candidates for s in (range(1, 33) if split else (1,))]
    shape, units, hopper = (m, n, k), multiprocessors(device), described and is_hopper(device)
    return min(plans, key=lambda plan: _cost(plan, shape, units, split, hopper))


def _cost(plan: MatmulTiles, shape: tuple[int, int, int], units: int, split: bool, hopper: bool) -> float:
    """Estimated time of a plan, in multiply-adds of one multiprocessor.

    Whole waves of tiles, each with a fixed overhead worth 256 steps of K; the smaller tile is 8 % slower
    per multiply-add, 25 % than the kernel for Hopper. A split part is written and read again in float32: 8
    bytes per element at 4 TB/s cost what 700 multiply-adds cost at 700 TFLOP/s, shared by all
    multiprocessors. So is a pass over the right operand for a bias's gradient, 2 bytes, which the kernel for
    Hopper does not need.
    """
    m, n, k = shape
    if plan.splits > max(1, k // (8 * plan.block_k)):
        return float("inf")
    programs = triton.cdiv(m, plan.block_m) * triton.cdiv(n, plan.block_n) * plan.splits
    waves = triton.cdiv(programs, units)
    area = plan.block_m * plan.block_n
    slower = 1.0 if area > 128 * 128 else 1.25 if hopper else 1.08
    work = waves * area * (triton.cdiv(k, plan.splits) + 256) * slower
    passes = (plan.splits > 1) * plan.splits * m * n * 700.0 + (split and slower > 1.0) * k * n * 175.0
    return work + passes / units


def group_rows(n_tiles: int) -> int:
    """Row tiles walked together, so that a wave of tiles re-reads as little as possible from L2.

    Few column tiles: all of them are in flight for 8 row tiles. Many (the head): groups of 16, since the
    head's matrix (77 MB) does not fit L2 (50 MB).
    """
    return 8 if n_tiles <= 32 else 16


def attention_tiles(kind: str, head_width: int, dtype: torch.dtype, dropout: bool) -> AttentionTiles:
    """Tiles of one attention kernel."""
    if INTERPRET.value:
        # smaller than the contexts of the tests, so that skipped, whole and partial tiles all occur
        return AttentionTiles(32, 16, 1, 1)
    if dtype == torch.float32:
        return AttentionTiles(32, 32, 4, 2) if head_width <= 64 else AttentionTiles(16, 32, 4, 1)
    wide = head_width > 64
    if wide or dropout:
        return {
            "forward": AttentionTiles(128, 64, 8, 3),
            "d_kv": AttentionTiles(64 if wide else 128, 32 if dropout else 64, 8, 2),
            "d_q": AttentionTiles(128, 64, 8, 2),
        }[kind]
    # more tiles in flight than fit beside wide heads: 7 to 10 % faster than two or three, each
    return {
        "forward": AttentionTiles(128, 64, 8, 4),
        "d_kv": AttentionTiles(128, 64, 8, 4),
        "d_q": AttentionTiles(128, 32, 8, 4),
    }[kind]


def hopper_attention(qkv: torch.Tensor, head_width: int, documents: bool) -> bool:
    """True where attention runs by the kernels written for Hopper's tensor cores.

    Args:
        qkv: Queries, keys and values [B, T, 3D]: bfloat16, T of whole programs, on a border of 16 bytes.
        head_width: K: 64.
        documents: True if positions see only their document: tiles to skip are the portable kernels' work.
    """
    fits = qkv.dtype == torch.bfloat16 and head_width == 64 and qkv.shape[1] % 256 == 0 and not documents
    return fits and is_hopper(qkv.device) and qkv.data_ptr() % 16 == 0


def stack_tiles(m: int, dtype: torch.dtype) -> MatmulTiles:
    """Tiles of the products of a stack of matrices, which together fill the device."""
    if INTERPRET.value:
        return MatmulTiles(64, 64, 64, 1, 1)
    if dtype == torch.float32:
        return MatmulTiles(64, 64, 16, 4, 3)
    return MatmulTiles(128, 128, 64, 8, 3) if m > 64 else MatmulTiles(64, 64, 64, 4, 3)
