"""Hopper's kernels on a CPU: Gluon's few operations that they use, on torch tensors, partitions as threads.

Gluon has no interpreter, and an asynchronous kernel can be wrong in ways that no value shows until a GPU
hangs. So what is asynchronous is as late here as it may be: a tile is NaN until somebody has waited for its
barrier, a product is computed when it is waited for, a store reads its tile when that is waited for. Which
partition runs next is drawn; when all wait, the kernel is stuck, and says so.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon._runtime import GluonJITFunction
from triton.language import constexpr
from triton.runtime.interpreter import InterpretedFunction

MOST_POLLS = 10_000  # one after the other: what a program waits for never comes


class StuckError(AssertionError):
    """Every partition waits, or one failed."""


class Partitions:
    """The threads of a program, of which one runs at a time; the next is drawn whenever one waits."""

    def __init__(self, bodies: list[Callable[[], None]], seed: int) -> None:
        self.turn, self.random = threading.Condition(), random.Random(seed)
        self.ready: dict[int, Callable[[], bool]] = {i: lambda: True for i in range(len(bodies))}
        self.running: int | None = None
        self.error: BaseException | None = None
        self.threads = [threading.Thread(target=self._run, args=(i, body)) for i, body in enumerate(bodies)]

    def finish(self) -> None:
        """Run all to their end."""
        with self.turn:
            self._choose()
        for thread in self.threads:
            thread.start()
        for thread in self.threads:
            thread.join()
        if self.error is not None:
            raise self.error

    def wait(self, done: Callable[[], bool]) -> None:
        """Let others run until ``done``."""
        assert self.running is not None
        self._pause(self.running, done)

    def _run(self, which: int, body: Callable[[], None]) -> None:
        try:
            with self.turn:
                self.turn.wait_for(lambda: self.running == which or self.error is not None)
            if self.error is None:
                body()
        except BaseException as error:  # noqa: BLE001  # it is raised again where the kernel was launched
            self.error = self.error or error
        with self.turn:
            del self.ready[which]
            self._choose()

    def _pause(self, which: int, done: Callable[[], bool]) -> None:
        with self.turn:
            self.ready[which] = done
            self._choose()
            self.turn.wait_for(lambda: self.running == which or self.error is not None)
        if self.error is not None:
            raise StuckError

    def _choose(self) -> None:
        able = [i for i, done in self.ready.items() if done()]
        if not able and self.ready and self.error is None:
            self.error = StuckError("every partition waits")
        self.running = self.random.choice(able) if able else None
        self.turn.notify_all()


class Barrier:
    """An mbarrier: a phase ends when its arrivals and its bytes are complete."""

    def __init__(self) -> None:
        self.count = self.arrived = self.phases = self.bytes = 0
        self.late: list[Callable[[], int]] = []

    def arrive(self, bytes_expected: int = 0) -> None:
        """One arrival."""
        self.arrived += 1
        self.bytes += bytes_expected
        assert self.arrived <= self.count, "more arrivals than a phase has"

    def complete(self, parity: int) -> bool:
        """True if the phase of this parity has ended; bytes arrive no earlier than asked for."""
        if self.arrived == self.count:
            self.bytes -= sum(copy() for copy in self.late)
            self.late = []
            if self.bytes == 0:
                self.arrived, self.phases = 0, self.phases + 1
        return self.phases & 1 != parity


class Shared:
    """A view of shared memory."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.shape = x, list(x.shape)

    def index(self, i: int) -> Shared:
        """One tile of several."""
        return Shared(self.x[i])

    def permute(self, order: tuple[int, ...]) -> Shared:
        """Axes in another order."""
        return Shared(self.x.permute(order))

    def slice(self, start: int, length: int, dim: int) -> Shared:
        """Part of an axis."""
        return Shared(self.x.narrow(dim, start, length))

    def load(self, _layout: object) -> Tensor:
        """Read."""
        return self.x.clone()

    def store(self, value: Tensor) -> None:
        """Write."""
        self.x.copy_(value)


class Barriers:
    """Shared memory for barriers."""

    def __init__(self, count: int) -> None:
        self.all, self.shape = [Barrier() for _ in range(count)], [count, 1]

    def index(self, i: int) -> Barrier:
        """One of them."""
        return self.all[i]


class Pointer:
    """A position, or many, in a tensor."""

    def __init__(self, x: Tensor, at: Any = 0) -> None:
        self.x, self.at = x.view(-1), at

    def __add__(self, more: Any) -> Pointer:
        return Pointer(self.x, self.at + more)


class Described:
    """Tiles of rows of a matrix, or of numbers; zeros outside, as the tensor memory accelerator has it."""

    def __init__(self, x: Tensor, block: list[int]) -> None:
        self.x, self.block = x, block
        size = x.element_size()
        for length in block:
            size *= length
        self.block_type = SimpleNamespace(nbytes=size, shape=block)

    def read(self, at: list[int], tile: Tensor) -> None:
        """Fill ``tile`` from ``at`` on."""
        tile.zero_()
        here, there = self._inside(at, tile)
        there.copy_(here)

    def write(self, at: list[int], tile: Tensor) -> None:
        """Store ``tile`` from ``at`` on."""
        here, there = self._inside(at, tile)
        here.copy_(there)

    def _inside(self, at: list[int], tile: Tensor) -> tuple[Tensor, Tensor]:
        """What lies within of the tile at ``at``, in the matrix and in ``tile``."""
        here = self.x[tuple(slice(a, a + b) for a, b in zip(at, self.block, strict=True))]
        return here, tile[tuple(slice(0, n) for n in here.shape)]


class Product:
    """``a b + c``, computed when it is waited for."""

    def __init__(self, a: Any, b: Shared, c: Any) -> None:
        self.a, self.b, self.c, self.value = a, b, c, None

    def finish(self) -> None:
        """Read the operands now."""
        a = (self.a.x if isinstance(self.a, Shared) else self.a).float()
        value = a @ self.b.x.float()
        c = self.c.value if isinstance(self.c, Product) else self.c
        self.value = value if c is None else value + c


class Program:
    """One program: its shared memory, its partitions, and what of them is in flight."""

    def __init__(self, which: int, count: int) -> None:
        self.which, self.count, self.polls = which, count, 0
        self.bodies: list[Callable[[], None]] = []
        self.partitions: Partitions | None = None
        self.local = threading.local()

    def queue(self, kind: str) -> deque[Any]:
        """What this partition has in flight."""
        if not hasattr(self.local, kind):
            setattr(self.local, kind, deque())
        return getattr(self.local, kind)

    def product(
        self, a: Any, b: Shared, acc: Any, *, use_acc: bool = True, is_async: bool = False
    ) -> Product:
        """Start a product."""
        assert is_async
        self.queue("products").append(Product(a, b, acc if use_acc else None))
        return self.queue("products")[-1]

    def wait_products(self, outstanding: int, deps: tuple[Any, ...]) -> Any:
        """Finish all but the youngest."""
        while len(self.queue("products")) > outstanding:
            self.queue("products").popleft().finish()
        # one that is not finished can only be added to
        values = tuple(d.value if isinstance(d, Product) and d.value is not None else d for d in deps)
        return values[0] if len(values) == 1 else values

    def wait_barrier(self, barrier: Barrier, parity: int, pred: bool = True) -> None:
        """Wait for the end of a phase."""
        if pred:
            assert self.partitions is not None
            self.partitions.wait(lambda: barrier.complete(parity))

    def load(self, desc: Described, at: list[int], barrier: Barrier, tile: Shared) -> None:
        """Start loading a tile."""
        tile.x.fill_(torch.nan if tile.x.is_floating_point() else -1)

        def copy() -> int:
            desc.read(at, tile.x)
            return desc.block_type.nbytes

        barrier.late.append(copy)

    def store(self, desc: Described, at: list[int], tile: Shared) -> None:
        """Start writing a tile."""
        self.queue("stores").append(lambda: desc.write(at, tile.x))

    def wait_stores(self, outstanding: int) -> None:
        """Finish the stores."""
        assert outstanding == 0
        while self.queue("stores"):
            self.queue("stores").popleft()()

    def specialize(
        self, bodies: list[tuple[Any, tuple[Any, ...]]], warps: list[int], registers: list[int]
    ) -> None:
        """Set up the partitions."""
        assert len(bodies) == len(warps) + 1 == len(registers) + 1
        # the register file: 65,536, of which every warpgroup holds its own; small partitions share one
        whole = [r for w, r in zip(warps, registers, strict=True) if w >= 4]
        small = [(w, r) for w, r in zip(warps, registers, strict=True) if w < 4]
        shared = -(-sum(w for w, _ in small) // 4) * max((r for _, r in small), default=0)
        assert 128 * (registers[0] + sum(whole) + shared) <= 65536
        self.bodies = [lambda f=f, a=a: f(*a) for f, a in bodies]

    def atomic_add(self, pointer: Pointer, value: Any, sem: str = "acq_rel") -> int:
        """Add, and what a single integer was; who asks for it again and again lets others run."""
        assert self.partitions is not None
        self.partitions.wait(lambda: True)
        was = 0 if isinstance(value, Tensor) else int(pointer.x[pointer.at])
        pointer.x[pointer.at] += value
        self.polls = self.polls + 1 if sem == "acquire" else 0
        if self.polls > MOST_POLLS:
            raise StuckError("nobody adds what is waited for")
        return was


def _load(pointer: Pointer, mask: Any = None, other: float = 0, cache_modifier: str = "") -> Tensor:
    del cache_modifier
    if mask is None:
        return pointer.x[pointer.at]
    mask = torch.as_tensor(mask)
    return torch.where(mask, pointer.x[torch.where(mask, pointer.at, 0)], other)


def _store(pointer: Pointer, value: Tensor, mask: Tensor | None = None) -> None:
    if mask is None:
        pointer.x[pointer.at] = value
    else:
        pointer.x[pointer.at[mask]] = value[mask]


def _where(condition: Any, a: Any, b: Any) -> Any:
    return torch.where(condition, a, b) if isinstance(condition, Tensor) else (a if condition else b)


def _maximum(a: Any, b: Any) -> Any:
    return torch.maximum(a, b) if isinstance(a, Tensor) else max(a, b)


def _select(_asm: str, _constraints: str, args: list[Tensor], **_: object) -> Tensor:
    x, word, bit = args
    return torch.where((word & bit) != 0, x, 0.0)


def _allocate(dtype: torch.dtype, shape: list[int], _layout: object) -> Any:
    if dtype == torch.int64:
        return Barriers(shape[0])
    return Shared(torch.full(shape, torch.nan if dtype.is_floating_point else -1, dtype=dtype))


def _language(program: Program) -> dict[str, Any]:
    gl = SimpleNamespace(
        constexpr=None, bfloat16=torch.bfloat16, float32=torch.float32, int32=torch.int32, int64=torch.int64,
        static_range=range, cast=lambda x, _: x, where=_where, maximum=_maximum,
        load=_load, store=_store, atomic_add=program.atomic_add, exp2=torch.exp2, log2=torch.log2,
        max=lambda x, axis: x.amax(axis) if x.dim() > 1 else int(x.max()), sum=lambda x, axis: x.sum(axis),
        arange=lambda a, b, layout=None: torch.arange(a, b),
        zeros=lambda shape, dtype, layout=None: torch.zeros(shape, dtype=dtype),
        full=lambda shape, value, dtype, layout=None: torch.full(tuple(shape), value, dtype=dtype),
        convert_layout=lambda x, _, assert_trivial=False: x, split=lambda x: x.unbind(-1),
        cdiv=lambda a, b: -(-a // b), inline_asm_elementwise=_select,
        program_id=lambda _: program.which, num_programs=lambda _: program.count,
        allocate_shared_memory=_allocate, warp_specialize=program.specialize,
        SliceLayout=lambda *_: None, BlockedLayout=lambda *_: None, DotOperandLayout=lambda *_: None,
        NVMMADistributedLayout=lambda *_: None,
    )  # fmt: skip
    barrier = SimpleNamespace(
        init=lambda b, count: setattr(b, "count", count),
        expect=lambda b, size: b.arrive(size),
        arrive=lambda b, count, pred=True: b.arrive() if pred else None,
        wait=program.wait_barrier,
        MBarrierLayout=lambda: None,
    )
    return {
        "gl": gl, "tl": SimpleNamespace(minimum=min), "mbarrier": barrier,
        "tma": SimpleNamespace(store_wait=program.wait_stores),
        "tma_load": program.load, "tma_store": program.store,
        "warpgroup_mma": program.product, "warpgroup_mma_wait": program.wait_products,
        "block_barrier": lambda: None, "fence_async_shared": lambda: None,
    }  # fmt: skip


def _rebuilt(kernel: GluonJITFunction[Any], language: dict[str, Any], seen: dict[int, Any]) -> Any:
    """The function under ``kernel``, calling rebuilt ones, in the language given."""
    # by identity: a kernel's hash would parse its sources
    if id(kernel) not in seen:
        names: dict[str, Any] = {}
        function = kernel.fn
        seen[id(kernel)] = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
        for name, value in function.__globals__.items():
            if name in language:
                names[name] = language[name]
            elif isinstance(value, GluonJITFunction | InterpretedFunction):
                names[name] = _rebuilt(value, language, seen)
            else:
                names[name] = value.value if isinstance(value, constexpr) else value
    return seen[id(kernel)]


class Emulated:
    """A kernel that is launched as the compiled one is."""

    def __init__(self, kernel: GluonJITFunction[Any], seed: int) -> None:
        self.kernel, self.seed = kernel, seed

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*args: Any, num_warps: int, **constants: Any) -> None:
            assert num_warps == 4
            given = [Pointer(a) if isinstance(a, Tensor) else a for a in args]
            programs = [Program(which, grid[0]) for which in range(grid[0])]
            for program in programs:
                _rebuilt(self.kernel, _language(program), {})(*given, **constants)
            partitions = Partitions([body for p in programs for body in p.bodies], self.seed)
            for program in programs:
                program.partitions = partitions
            partitions.finish()

        return launch
