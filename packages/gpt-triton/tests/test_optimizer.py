"""AdamW, Muon and the clip against torch's own, and the steps that are skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters as Canonical
from gpt_triton import reference
from gpt_triton.model import Parameters, Stretch
from gpt_triton.optimizer import OptimizerState, optimizer_init, optimizer_update, step_scalars
from gpt_triton.tree import canonical_names, from_canonical, to_canonical, zeros
from torch import Tensor

CPU = torch.device("cpu")
Check = Callable[..., None]
# past one tile, so that a tile's edge falls among the elements that decay
SIZE, DECAY = 300_000, 280_001


def _gradients(step: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(SIZE, generator=torch.Generator().manual_seed(step), dtype=torch.float64).to(dtype)


def _tree(flat: Tensor, decay_count: int = DECAY) -> Parameters:
    """A flat buffer alone: the optimizer asks for nothing else."""
    none = flat[:1]
    return Parameters(none[None], none[None], (), none, none, flat, 0, decay_count)


def _run(
    config: OptimizerConfig, lr: float, dtype: torch.dtype, steps: int
) -> tuple[Parameters, OptimizerState]:
    params = _tree(torch.linspace(-1.0, 1.0, SIZE, dtype=torch.float64).to(dtype))
    state = optimizer_init(params, config)
    for step in range(steps):
        scalars = torch.from_numpy(step_scalars(config, lr, step, float("inf"))).to(dtype)
        gradients = _tree(_gradients(step, dtype) * 10.0 ** (step - 3))
        optimizer_update(params, gradients, state, config, scalars, params, reference)
    return params, state


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_equals_torch_adamw(clip: float, assert_close: Check) -> None:
    config = OptimizerConfig(beta1=0.875, beta2=0.96875, epsilon=1e-6, weight_decay=0.5, clip_norm=clip)
    want = torch.linspace(-1.0, 1.0, SIZE, dtype=torch.float64)
    parts = [want[:DECAY].clone().requires_grad_(), want[DECAY:].clone().requires_grad_()]
    groups = [{"params": parts[:1], "weight_decay": 0.5}, {"params": parts[1:], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=0.125, betas=(0.875, 0.96875), eps=1e-6)
    for step in range(6):
        gradients = _gradients(step, torch.float64) * 10.0 ** (step - 3)
        if clip:
            gradients = gradients * min(1.0, clip / float(gradients.norm()))
        parts[0].grad, parts[1].grad = gradients[:DECAY], gradients[DECAY:]
        theirs.step()
    got, _ = _run(config, 0.125, torch.float64, 6)
    # the bias corrections reach the device in float32
    assert_close("parameters", got.flat, torch.cat([p.detach() for p in parts]), "optimizer")
    single, _ = _run(config, 0.125, torch.float32, 6)
    assert_close("float32", single.flat, got.flat, "optimizer")


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 100_000])
def test_norm_equals_float64(size: int, assert_close: Check) -> None:
    flat = torch.randn(size, generator=torch.Generator().manual_seed(1))
    assert_close("norm", reference.global_norm(flat), flat.double().norm().view(1), "optimizer")


@pytest.mark.parametrize(
    ("poison", "limit"), [(float("nan"), float("inf")), (float("inf"), float("inf")), (9.0, 1.0)]
)
def test_a_bad_norm_leaves_everything_alone(poison: float, limit: float) -> None:
    config = OptimizerConfig()
    params, state = _run(config, 0.1, torch.float32, 2)
    kept = [params.flat, *(stretch.values for stretch in state.values())]
    before = [values.clone() for values in kept]
    gradients = _gradients(9, torch.float32)
    gradients[SIZE // 2] = poison
    scalars = torch.from_numpy(step_scalars(config, 0.1, 2, limit))
    shadow = _tree(torch.zeros(SIZE, dtype=torch.bfloat16))
    outcome = optimizer_update(params, _tree(gradients), state, config, scalars, shadow, reference)
    assert not outcome.updated
    assert len(kept) == 3
    assert all(map(torch.equal, before, kept))
    assert torch.equal(shadow.flat, params.flat.bfloat16())


def test_a_norm_at_the_limit_still_updates() -> None:
    config = OptimizerConfig()
    params, gradients = (_tree(torch.zeros(4096), 0) for _ in range(2))
    gradients.flat[7] = 4.0
    scalars = torch.from_numpy(step_scalars(config, 0.5, 0, 4.0))
    outcome = optimizer_update(
        params, gradients, optimizer_init(params, config), config, scalars, params, reference
    )
    assert outcome.grad_norm.item() == 4.0
    assert outcome.updated
    assert params.flat[7].item() == pytest.approx(-0.5)
    assert not params.flat[:7].any()


def test_muon_moves_each_matrix_by_an_orthogonal_step_and_the_rest_as_adamw(
    config: ModelConfig, weights: Canonical
) -> None:
    """Queries, keys and values each for itself; maps that widen move further, by the root of their shape."""
    adamw = OptimizerConfig(weight_decay=0.0)
    muon = replace(adamw, optimizer="muon", muon_lr_factor=2.0)
    (moved, kept), (others, _) = (stepped(optimizer, config, weights) for optimizer in (muon, adamw))
    assert set(kept["momentum"]) == {name for name in weights if ".h." in name and weights[name].ndim == 2}
    assert kept["first"] == kept["second"] == [name for name in weights if name not in kept["momentum"]]
    for name, before in weights.items():
        if name not in kept["momentum"]:
            assert np.array_equal(moved[name], others[name]), name
            continue
        for step in np.split(before - moved[name], 3 if "c_attn" in name else 1, axis=1):
            sizes = np.linalg.svd(step)[1] / max(1.0, step.shape[1] / step.shape[0]) ** 0.5
            assert 0.5 < np.median(sizes) <= sizes.max() < 1.25, name


def test_muons_second_step_is_the_rule_written_out(
    config: ModelConfig, weights: Canonical, assert_close: Check
) -> None:
    """In float64: only from the second step on does the momentum differ from the gradient."""
    optimizer = OptimizerConfig(optimizer="muon", muon_lr_factor=2.0, weight_decay=0.1, clip_norm=0.0)
    params, gradients = from_canonical(weights, config, CPU), zeros(config, CPU)
    state, draw = optimizer_init(params, optimizer), torch.Generator().manual_seed(2)
    scalars = torch.from_numpy(step_scalars(optimizer, 0.1, 0, float("inf")))
    momentum = {name: torch.zeros(w.shape, dtype=torch.float64) for name, w in weights.items()}
    for _ in range(2):
        gradients.flat.normal_(generator=draw)
        slopes, before = (to_canonical(Stretch(tree.flat.clone()), config) for tree in (gradients, params))
        optimizer_update(params, gradients, state, optimizer, scalars, params, reference)
        after = to_canonical(Stretch(params.flat), config)
        for name in [name for name, w in weights.items() if ".h." in name and w.ndim == 2]:
            g, p = (torch.from_numpy(tree[name]).double() for tree in (slopes, before))
            momentum[name] = 0.95 * momentum[name] + g
            parts = (g + 0.95 * momentum[name]).chunk(3 if "c_attn" in name else 1, dim=1)
            wide = max(1.0, parts[0].shape[1] / parts[0].shape[0]) ** 0.5
            step = wide * torch.cat([newton_schulz(part) for part in parts], dim=1) + 0.1 * p
            assert_close(name, torch.from_numpy(after[name]).double() - p, -0.2 * step, "float32")


def newton_schulz(x: Tensor) -> Tensor:
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


def test_muon_leaves_matrices_of_zeros_but_for_decay(
    config: ModelConfig, weights: Canonical, assert_close: Check
) -> None:
    optimizer = OptimizerConfig(optimizer="muon", muon_lr_factor=2.0, weight_decay=0.1)
    params, gradients = from_canonical(weights, config, CPU), zeros(config, CPU)
    state, scalars = optimizer_init(params, optimizer), torch.from_numpy(step_scalars(optimizer, 0.1, 0, 1.0))
    assert optimizer_update(params, gradients, state, optimizer, scalars, params, reference).updated
    after = to_canonical(Stretch(params.flat), config)
    for name, before in weights.items():
        rate = 0.0 if before.ndim < 2 else 0.2 if ".h." in name else 0.1
        assert_close(
            name, torch.from_numpy(after[name]), torch.from_numpy(before * (1 - 0.1 * rate)), "optimizer"
        )


def stepped(
    optimizer: OptimizerConfig, config: ModelConfig, weights: Canonical
) -> tuple[Canonical, dict[str, list[str]]]:
    """The weights after a step of rate 0.5 by random gradients, and what is kept of which parameters."""
    params, gradients = from_canonical(weights, config, CPU), zeros(config, CPU)
    state = optimizer_init(params, optimizer)
    gradients.flat.normal_(generator=torch.Generator().manual_seed(2))
    scalars = torch.from_numpy(step_scalars(optimizer, 0.5, 0, float("inf")))
    optimizer_update(params, gradients, state, optimizer, scalars, params, reference)
    kept = {tree: canonical_names(stretch, config) for tree, stretch in state.items()}
    return to_canonical(Stretch(params.flat), config), kept
