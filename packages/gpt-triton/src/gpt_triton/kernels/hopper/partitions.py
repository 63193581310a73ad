"""What the Hopper kernels share, most of it attention's: partitions of warps, streamed tiles, bits of a mask.

These kernels are written in Gluon, Triton's lower-level dialect: layouts, shared memory, barriers and
asynchronous products are in our hands. Gluon has no interpreter, so that each kernel stands beside a
portable one and is held to the same tests on a GPU.

A program fills a multiprocessor and takes one piece of work after the other, the longest first. One warp,
the producer, loads tiles by the tensor memory accelerator; warpgroups of four warps, the consumers, own 64
rows each. A consumer never waits for another: what a tile needs are two barriers, one that its bytes have
arrived (full) and one that every consumer is done with its slot (empty). A stream is (tiles a [stages, N,
64], tiles b, full, empty); the n-th tile since the start lies in slot ``n % stages``, and its barriers are
in their ``n // stages``-th turn. Beside it stands what consumers keep of their own rows for a piece of work:
(tiles [groups, 64, 64], as many as a kernel needs; full, empty), a slot for each consumer.
"""

from __future__ import annotations

from typing import Any, no_type_check

from jaxtyping import Float
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# names changed between Triton 3.6 and 3.7
block_barrier = getattr(gl, "thread_barrier", None) or gl.barrier
tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
tma_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global

HEAD = gl.constexpr(64)  # head width: rows of 64 bfloat16 are 128 bytes, the widest swizzle
GROUP = gl.constexpr(64)  # rows of a consumer: those of one product of a warpgroup
PRODUCER_REGISTERS = gl.constexpr(24)  # the fewest a warp can keep
TILE = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2))
NUMBERS = gl.constexpr(gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1))
GRADIENT = gl.constexpr(
    gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HEAD.value, 16])
)  # [64, 64] of a consumer
OPERAND = gl.constexpr(gl.DotOperandLayout(0, GRADIENT.value, 2))  # the same as a left operand, in registers


def described(x: Float[Tensor, "B T D"], rows: int) -> Any:
    """Tiles of ``rows`` positions of one head in ``x``, as the tensor memory accelerator takes them."""
    return TensorDescriptor.from_tensor(x.flatten(0, 1), [rows, HEAD.value], TILE.value)


def described_numbers(x: Float[Tensor, "B H T"], count: int) -> Any:
    """``count`` of the numbers that a head has for its positions."""
    return TensorDescriptor.from_tensor(x.flatten(), [count], NUMBERS.value)


@gluon.jit
@no_type_check
def new_tiles(COUNT: gl.constexpr, ROWS: gl.constexpr):
    """Shared memory for ``COUNT`` tiles."""
    return gl.allocate_shared_memory(gl.bfloat16, [COUNT, ROWS, HEAD], TILE)


@gluon.jit
@no_type_check
def new_barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """Barriers that complete after ``ARRIVALS`` arrivals and all bytes expected."""
    barriers = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


@gluon.jit
@no_type_check
def new_numbers(COUNT: gl.constexpr, N: gl.constexpr):
    """Shared memory for the numbers of ``COUNT`` tiles' rows."""
    return gl.allocate_shared_memory(gl.float32, [COUNT, N], NUMBERS)


@gluon.jit
@no_type_check
def new_stream(STAGES: gl.constexpr, GROUPS: gl.constexpr, N: gl.constexpr):
    """Tiles that are streamed past so many consumers."""
    return (
        new_tiles(STAGES, N),
        new_tiles(STAGES, N),
        new_barriers(STAGES, 1),
        new_barriers(STAGES, GROUPS),
    )


@gluon.jit
@no_type_check
def set_up(OWN: gl.constexpr, GROUPS: gl.constexpr, STAGES: gl.constexpr, N: gl.constexpr):
    """The shared memory of attention: ``OWN`` tiles of a consumer's own rows, and a stream."""
    tiles = ()
    for _ in gl.static_range(OWN):
        tiles += (new_tiles(GROUPS, GROUP),)
    own = (tiles, new_barriers(GROUPS, 1), new_barriers(GROUPS, 1))
    stream = new_stream(STAGES, GROUPS, N)
    fence_async_shared()
    block_barrier()
    return own, stream


@gluon.jit
@no_type_check
def wait_full(stream, n, wanted):
    """Wait for the n-th tile: a branch, over which the assembler moves no wait for a product."""
    STAGES: gl.constexpr = stream[0].shape[0]
    mbarrier.wait(stream[2].index(n % STAGES), (n // STAGES) & 1, pred=wanted)


@gluon.jit
@no_type_check
def expect_slot(stream, n, BYTES: gl.constexpr):
    """The slot of the n-th tile, once it is empty, and the barrier that ``BYTES`` now complete."""
    STAGES: gl.constexpr = stream[0].shape[0]
    slot = n % STAGES
    mbarrier.wait(stream[3].index(slot), ((n // STAGES) & 1) ^ 1)
    full = stream[2].index(slot)
    mbarrier.expect(full, BYTES)
    return slot, full


@gluon.jit
@no_type_check
def release(stream, n):
    """This consumer is done with the n-th tile."""
    STAGES: gl.constexpr = stream[0].shape[0]
    mbarrier.arrive(stream[3].index(n % STAGES), count=1)


@gluon.jit
@no_type_check
def skip(stream, first, last):
    """Release tiles that are for other consumers, each in its turn."""
    for n in range(first, last):
        wait_full(stream, n, True)
        release(stream, n)


@gluon.jit
@no_type_check
def scores(a, b, layout: gl.constexpr):
    """Start ``a b^T``: [rows of a, rows of b] float32, from tiles in shared memory."""
    M: gl.constexpr = a.shape[0]
    N: gl.constexpr = b.shape[0]
    zero = gl.zeros([M, N], gl.float32, layout=layout)
    return warpgroup_mma(a, b.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
@no_type_check
def as_operand(x):
    """A computed float32 tile, rounded, as the left operand of a product, in registers."""
    return gl.convert_layout(x.to(gl.bfloat16), OPERAND)


@gluon.jit
@no_type_check
def store_tile(desc, row, column, tile, value):
    """Start writing a tile through shared memory, once the tile written there before has been read."""
    tma.store_wait(0)
    block_barrier()
    tile.store(value.to(gl.bfloat16))
    fence_async_shared()
    block_barrier()
    tma_store(desc, [row, column], tile)


@gluon.jit
@no_type_check
def first_word(head, block, T):
    """Place of a block's first word in a mask of heads of T positions: a block has words for all up to it."""
    blocks = T // 32
    return (head * (blocks * (blocks + 1) // 2) + block * (block + 1) // 2) * 32


@gluon.jit
@no_type_check
def load_words(mask_ptr, stay, first):
    """Words of ``attention_mask`` by query, [stay]: for the first 32 of 64 keys streamed, and the last."""
    block, own = first // 32, stay // 32
    at = (own * (own + 1) // 2 + block) * 32 + stay % 32
    word = gl.load(mask_ptr + at, mask=block <= own, other=0)
    last = gl.load(mask_ptr + at + 32, mask=block + 1 <= own, other=0)
    return word, last


@gluon.jit
@no_type_check
def mask_bits(words, N: gl.constexpr, layout: gl.constexpr):
    """[stay, N] words, and the bit of each that ``dropout.kept`` tests."""
    place = gl.arange(0, N, layout=gl.SliceLayout(0, layout))[None, :]
    word = gl.where(place < 32, words[0][:, None], words[1][:, None])
    one = gl.full([words[0].shape[0], N], 1, gl.int32, layout=layout)
    return word >> (place & 6), one << (place & 25)


@gluon.jit
@no_type_check
def keep(x, word, bit):
    """``x`` where the bit is set, else 0: two instructions; left to the compiler, more, after rounding."""
    return gl.inline_asm_elementwise(
        """{.reg .pred kept; .reg .b32 found;
        and.b32 found, $2, $3;
        setp.ne.b32 kept, found, 0;
        selp.f32 $0, $1, 0f00000000, kept;}""",
        "=f,f,r,r",
        [x, word, bit],
        dtype=gl.float32,
        is_pure=True,
        pack=1,
    )
