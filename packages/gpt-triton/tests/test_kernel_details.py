"""What the grid of ``test_kernel_ops`` does not say: bits of the mask, extremes, descriptors, the guard."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.philox import dropout_mask
from gpt_triton_kernel_runs import DEVICE, FIRST_ROW, FLOAT32, KEY, Fenced, dropout, randn, relative

from gpt_triton import kernels, reference  # isort: skip  # after the setup above, which chooses the interpreter
from gpt_triton.kernels import matmul, tiles  # isort: skip
from gpt_triton.kernels.dropout import attention_mask  # isort: skip
from gpt_triton.kernels.primitives import has_tensor_descriptors, is_hopper  # isort: skip

from gpt_triton_cases import CASES, gelu_of  # isort: skip
import triton  # isort: skip
import triton.language as tl  # isort: skip

# the sigmoid of a very negative number goes through infinity to 0, as it should; NumPy remarks on it
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp2:RuntimeWarning")

in_interpreter = pytest.mark.skipif(DEVICE.type != "cpu", reason="looks into the interpreter")


# an op that has a case is thereby held to it in both sets; other sizes are in test_kernel_ops
@in_interpreter
@pytest.mark.parametrize("name", CASES)
def test_the_cases_of_the_reference(name: str) -> None:
    sound, ours = CASES[name](reference), CASES[name](kernels)
    inputs = [x.float() for x in sound.inputs]
    exact = [x.double() for x in inputs]
    d_out = randn(*sound.forward(*exact).shape)
    want = [sound.forward(*exact), *sound.backward(*exact, d_out.double())]
    got = [ours.forward(*inputs), *ours.backward(*inputs, d_out)]
    for number, pair in enumerate(zip(got, want, strict=True)):
        assert relative(*pair) <= FLOAT32, f"output {number}"


# 1, 5, 31, 33, 130: in, around and past a block of 32; 24, 25: whole and cut calls; 258: past a tile
SIZES = [(1, 1, 1), (2, 5, 24), (3, 31, 25), (1, 33, 258), (1, 130, 24)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
@pytest.mark.parametrize("rate", [0.1, 0.99])
def test_mask_is_the_shared_one_bit_for_bit(shape: tuple[int, int, int], rate: float) -> None:
    rows, context, width = shape
    got = kernels.dropout_fwd(torch.ones(rows * context, width, device=DEVICE), dropout(context, rate))
    want = dropout_mask(shape, KEY, rate, FIRST_ROW)
    assert np.array_equal((got != 0).view(shape).cpu().numpy(), want)


@pytest.mark.parametrize(
    ("rows", "context", "heads"), [(1, 1, 1), (3, 5, 2), (1, 31, 3), (2, 33, 1), (1, 130, 1)]
)
def test_bits_of_attention_are_the_shared_mask(rows: int, context: int, heads: int) -> None:
    words = attention_mask(dropout(context), rows, context, heads, None).cpu().numpy().view(np.uint32)
    bits = words[..., None] >> np.arange(32, dtype=np.uint32) & 1  # [2, N, C, 32, 32]
    blocks = -(-context // 32)
    got = np.zeros((2, rows * heads, blocks, 32, blocks, 32), bool)
    for index, (i, j) in enumerate(zip(*np.tril_indices(blocks), strict=True)):
        got[0, :, i, :, j], got[1, :, i, :, j] = bits[0, :, index], bits[1, :, index].transpose(0, 2, 1)
    got = got.reshape(2, rows, heads, 32 * blocks, 32 * blocks)[..., :context, :context]
    want = dropout_mask((rows, heads, context, context), KEY, 0.3, FIRST_ROW)
    assert np.array_equal(np.tril(got), np.tril(np.stack([want, want])))


@pytest.mark.parametrize("level", [-1e4, 0.0, 1e4])
def test_extreme_logits(level: float) -> None:
    wte = torch.zeros(128, 16, device=DEVICE)
    wte[:100, 0] = level
    x, targets = torch.ones(3, 16, device=DEVICE), torch.tensor([0, 99, -1], dtype=torch.int32, device=DEVICE)
    d_wte = torch.zeros_like(wte)
    scale = torch.tensor(1.0, device=DEVICE)
    nll, d_x = kernels.linear_cross_entropy(x, wte, targets, 100, scale, d_wte)
    # equal logits cost log of the vocabulary, however large they are; float32 holds 1e4 to 1e-3
    assert relative(nll, torch.tensor([math.log(100)] * 2 + [0.0])) < (1e-6 if level == 0 else 1e-3)
    assert d_x.isfinite().all()
    assert d_wte.isfinite().all()


def test_extreme_scores_stay_finite() -> None:
    qkv = randn(1, 33, 48, scale=100.0)
    out, res = kernels.attention_fwd(qkv, 1, None)
    want, _ = reference.attention_fwd(qkv.double(), 1, None)
    assert relative(out, want) < 1e-5
    assert kernels.attention_bwd(res, out, 1).isfinite().all()


@pytest.mark.filterwarnings("ignore:overflow encountered")  # an infinite exponent is what is tried
@pytest.mark.parametrize("size", [1e3, 1e14, 1e18])
def test_slope_of_gelu_far_from_zero_is_one_or_nothing(size: float) -> None:
    x = torch.tensor([size, -size], device=DEVICE)
    assert gelu_of(kernels, x)[1].tolist() == [1.0, 0.0]


def test_constant_rows_normalize_to_the_bias() -> None:
    bias = randn(48)
    y, res = kernels.layer_norm_fwd(torch.full((3, 48), 7.0, device=DEVICE), randn(48, seed=1), bias)
    assert torch.equal(y, bias.expand(3, 48))
    assert res.rstd.isfinite().all()


@pytest.mark.parametrize("changed", [1, 16, 31, 32])  # within and at the borders of tiles
def test_attention_is_causal_to_the_bit(changed: int) -> None:
    qkv = randn(1, 40, 48)
    other = qkv.clone()
    other[:, changed:] += 1.0
    (a, _), (b, _) = kernels.attention_fwd(qkv, 1, None), kernels.attention_fwd(other, 1, None)
    assert torch.equal(a[:, :changed], b[:, :changed])
    assert not torch.equal(a[:, changed:], b[:, changed:])


# 1: scalar tail; 65537: past one block; a clipped and an unclipped step
@pytest.mark.parametrize("count", [1, 65537])
@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_adamw(count: int, clip: float) -> None:
    fence, config = Fenced(), OptimizerConfig(clip_norm=clip, beta2=0.999)
    start = [randn(count, seed=s) for s in range(3)] + [randn(count, seed=3).abs()]
    ours, want = [fence(t) for t in start], [t.double() for t in start]
    shadow = fence(torch.zeros(count, device=DEVICE), torch.bfloat16)
    scalars = torch.tensor([1e-2, 0.1, 0.001, 1e9], device=DEVICE)
    norm = kernels.global_norm(ours[1])
    assert relative(norm, want[1].norm().view(1)) < 1e-6
    kernels.adamw_update(*ours, shadow, count // 3, norm, scalars, config)
    exact_norm = reference.global_norm(want[1])
    reference.adamw_update(*want, None, count // 3, exact_norm, scalars.double(), config)
    fence.check()
    for name, a, b in zip(("weight", "gradient", "first", "second"), ours, want, strict=True):
        assert relative(a, b) < 1e-6, name
    assert torch.equal(shadow, ours[0].bfloat16())


@pytest.mark.parametrize("norm", [math.nan, math.inf, 11.0])
def test_adamw_leaves_everything_alone_after_a_bad_norm(norm: float) -> None:
    state = [randn(100, seed=s) for s in range(4)]
    state[1][3] = math.nan
    before = [t.clone() for t in state]
    scalars = torch.tensor([1e-2, 0.1, 0.05, 10.0], device=DEVICE)
    kernels.adamw_update(*state, None, 50, torch.tensor([norm], device=DEVICE), scalars, OptimizerConfig())
    for index in (0, 2, 3):
        assert torch.equal(state[index], before[index])


# past one tile in either axis, wide and tall; queries, keys and values side by side
@pytest.mark.parametrize("shape", [(2, 1, 24, 70), (2, 1, 261, 17), (1, 3, 19, 19)], ids=str)
@pytest.mark.parametrize("norm", [0.25, 9.0, math.nan])
def test_muon(shape: tuple[int, ...], norm: float) -> None:
    fence, config = Fenced(), OptimizerConfig(optimizer="muon", muon_lr_factor=3.0, clip_norm=0.5)
    scalars = torch.tensor([1e-2, 0.1, 0.001, 9.5], device=DEVICE)
    blocks, parts, rows, columns = shape

    def stack(flat: torch.Tensor) -> torch.Tensor:
        return flat.view(blocks, rows, parts, columns).transpose(1, 2)

    start = [randn(math.prod(shape), seed=seed) for seed in range(3)]
    ours, want = [fence(flat) for flat in start], [flat.double() for flat in start]
    shadow, size = fence(ours[0].bfloat16()), torch.tensor([norm], device=DEVICE)
    kernels.muon_update(*map(stack, ours), stack(shadow), size, scalars, config, torch.float32)
    given = size.double(), scalars.double(), config, torch.float64
    reference.muon_update(*map(stack, want), None, *given)
    fence.check()
    assert [torch.equal(*pair) for pair in zip(ours, start, strict=True)] == [math.isnan(norm)] * 3
    for name, a, b in (("weights", ours[0], want[0]), ("momentum", ours[2], want[2])):
        assert relative(a, b) < 1e-5, name
    assert torch.equal(shadow, ours[0].bfloat16())


# every layout of the operands; 65 and 72: partial tiles in M and N
@pytest.mark.parametrize("a_across", [False, True])
@pytest.mark.parametrize("b_across", [False, True])
def test_descriptor_kernel_equals_the_pointer_kernel(a_across: bool, b_across: bool) -> None:
    if DEVICE.type == "cuda" and not has_tensor_descriptors(DEVICE):
        pytest.skip("needs compute capability 9")
    m, n, k = 72, 136, 96
    a = randn(k, m).bfloat16().T if a_across else randn(m, k).bfloat16()
    b = randn(n, k).bfloat16().T if b_across else randn(k, n).bfloat16()
    residual = randn(m, n).bfloat16()
    plan = tiles.MatmulTiles(64, 256, 64, 4, 1)
    results = []
    for launch in (matmul.launch_pointers, matmul.launch_descriptors):
        out, slope, scaled = (torch.empty(m, n, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
        forward = matmul.Epilogue(randn(n), True, slope, None, residual)
        launch(a, b, out, plan, forward, False)
        launch(a, b, scaled, plan, matmul.Epilogue(factor=residual), False)
        parts = torch.empty(2, m, n, device=DEVICE)
        launch(a, b, parts, plan._replace(splits=2), matmul.Epilogue(), False)
        results.append((out, slope, scaled, parts.sum(0)))
    for ours, want in zip(results[1], results[0], strict=True):
        assert relative(ours, want) < 1e-6
    assert relative(results[1][-1], a.double() @ b.double()) < 1e-6


# every layout of the operands; 200 and 264: partial tiles in M and N; 1,000: a partial step, two parts of 8
@pytest.mark.gpu
@pytest.mark.skipif(not is_hopper(DEVICE) or DEVICE.type == "cpu", reason="needs compute capability 9")
@pytest.mark.parametrize("a_across", [False, True])
@pytest.mark.parametrize("b_across", [False, True])
def test_hopper_kernel_equals_the_descriptor_kernel(a_across: bool, b_across: bool) -> None:
    m, n, k = 200, 264, 1000
    a = randn(k, m).bfloat16().T if a_across else randn(m, k).bfloat16()
    b = randn(n, k).bfloat16().T if b_across else randn(k, n).bfloat16()
    other, bias = randn(m, n, seed=1).bfloat16(), randn(n)
    results: list[list[torch.Tensor]] = []
    # the residual of a tile of 256 columns, loaded by all threads, leaves no room for three stages
    for launch, plan in (
        (matmul.launch_descriptors, tiles.MatmulTiles(128, 128, 64, 8, 3)),
        (matmul.launch_hopper, tiles.MatmulTiles(128, 256, 64, 8, 3)),
    ):
        kept, parts = torch.ones(m, n, device=DEVICE), torch.full((2, m, n), torch.nan, device=DEVICE)
        launch(a, b, kept, plan, matmul.Epilogue(), True)
        launch(a, b, parts, plan._replace(splits=2), matmul.Epilogue(), False)
        results.append([kept, *parts])
        for epilogue in (
            matmul.Epilogue(bias=bias),
            matmul.Epilogue(factor=other),
            matmul.Epilogue(bias=bias, residual=other),
        ):
            out = torch.full((m, n), torch.nan, dtype=torch.bfloat16, device=DEVICE)
            launch(a, b, out, plan, epilogue, False)
            results[-1].append(out)
    for ours, want in zip(results[1], results[0], strict=True):
        # the same sums in another order: a bfloat16 may round the other way
        assert relative(ours, want) < (1e-6 if ours.dtype == torch.float32 else 1e-4)
    assert relative(results[1][0], a.double() @ b.double() + 1.0) < 1e-6
    if not b_across:
        parts, sums = torch.full((2, m, n), torch.nan, device=DEVICE), torch.ones(n, device=DEVICE)
        matmul.launch_hopper(a, b, parts, plan._replace(splits=2), matmul.Epilogue(), False, sums)
        assert torch.equal(parts, torch.stack(results[1][1:3]))
        assert relative(sums, b.double().sum(0) + 1.0) < 1e-6


@triton.jit
def _copy_kernel(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(y_ptr + i, tl.load(x_ptr + i, mask=i < N), mask=i < N)


@in_interpreter
def test_the_guard_sees_a_read_past_the_end() -> None:
    from gpt_triton_guard import OutOfBoundsError, bounds_checked

    x, y = torch.zeros(10)[:5], torch.zeros(5)
    with bounds_checked() as seen:
        _copy_kernel[(1,)](x, y, 5, BLOCK=8)
        assert seen[0] == 10
        with pytest.raises(triton.runtime.errors.InterpreterError, match=OutOfBoundsError.__name__):
            _copy_kernel[(1,)](x, y, 6, BLOCK=8)


# a ticket, a count read and raised, and a sum that only the program whose turn it is adds to
ATOMICS = {"attention_d_q.py": 4}


def test_sources_hold_no_unordered_atomics_and_no_tuning_at_run_time() -> None:
    sources = sorted(Path(kernels.__file__).parent.rglob("*.py"))
    assert len(sources) > 15
    for path in sources:
        text = path.read_text()
        assert not re.search(r"autotune|torch\.compile|\.item\(", text), path.name
        assert text.count("atomic_") == ATOMICS.get(path.name, 0), path.name


def test_plans_fit_the_device_and_depend_on_nothing_else() -> None:
    device = torch.device("meta")
    for shape in ((65536, 768, 768), (768, 3072, 65536), (50304, 768, 8192)):
        for split in (False, True):
            for gelu in (False, True):
                plan = tiles.matmul_tiles(*shape, torch.bfloat16, device, split, gelu)
                assert plan == tiles.matmul_tiles.__wrapped__(*shape, torch.bfloat16, device, split, gelu)
                staged = (plan.block_m + plan.block_n) * plan.block_k * 2 * plan.stages
                assert staged * plan.programs <= tiles.SHARED_BYTES


def test_a_norm_that_is_infinite_changes_nothing_whatever_the_limit() -> None:
    norm, scalars = (torch.tensor(each, device=DEVICE) for each in ([torch.inf], [0.5, 1.0, 1.0, torch.inf]))
    values = [torch.full((1, 1, 4, 6), each, device=DEVICE) for each in (1.0, 2.0, 3.0, 4.0)]
    weights, gradients, first, second = (each.clone() for each in values)
    flat = [each.view(-1) for each in (weights, gradients, first, second)]
    kernels.adamw_update(*flat, None, 12, norm, scalars, OptimizerConfig())
    kernels.muon_update(weights, gradients, first, None, norm, scalars, OptimizerConfig(), torch.float32)
    assert all(map(torch.equal, (weights, gradients, first, second), values))
