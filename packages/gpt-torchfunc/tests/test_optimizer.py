"""AdamW and Muon against torch's own: what decays, is clipped, is skipped; that they are traced once."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from gpt_torchfunc.optimizer import (
    BLOCK_MATRICES,
    MATRICES,
    StepScalars,
    optimizer_init,
    optimizer_update,
    step_scalars,
)
from gpt_torchfunc.tree import LEAF_NAMES, from_leaves, leaves, map_leaves, named_leaves
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.parameters import BLOCK_NAMES, END_NAMES, parameter_shapes

CONFIG = OptimizerConfig(clip_norm=0.5)


def random_like(params, seed):
    stream = torch.Generator().manual_seed(seed)
    return map_leaves(lambda leaf: torch.randn(leaf.shape, generator=stream), params)


def scalars_at(step, lr=1e-2, skip_above=math.inf, config=CONFIG):
    return StepScalars(*step_scalars(config, lr, step, skip_above).unbind())


def test_ten_steps_are_those_of_torch(params, assert_close):
    outside = [leaf.double().requires_grad_() for leaf in leaves(params)]
    groups = [
        {
            "params": [p for n, p in zip(LEAF_NAMES, outside, strict=True) if (n in MATRICES) == decay],
            "weight_decay": 0.1 * decay,
        }
        for decay in (True, False)
    ]
    theirs = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    state, ours = optimizer_init(params, CONFIG), params
    for step in range(10):
        lr = 1e-2 * (step + 1)
        gradients = random_like(params, step)
        for p, g in zip(outside, leaves(gradients), strict=True):
            p.grad = g.double()
        norm = torch.nn.utils.clip_grad_norm_(outside, CONFIG.clip_norm)
        for group in theirs.param_groups:
            group["lr"] = lr
        theirs.step()
        ours, state, outcome = optimizer_update(ours, gradients, state, CONFIG, scalars_at(step, lr))
        assert_close("norm", outcome.grad_norm, norm, rel=1e-6)
    for name, got, want in zip(LEAF_NAMES, leaves(ours), outside, strict=True):
        # torch divides by norm + 1e-6
        assert_close(name, got, want, rel=1e-5)


def test_matrices_and_embeddings_decay_and_nothing_else(config):
    canonical = END_NAMES | {field: f"transformer.h.0.{name}" for field, name in BLOCK_NAMES.items()}
    shapes = parameter_shapes(config)
    for leaf in LEAF_NAMES:
        assert (leaf in MATRICES) == (len(shapes[canonical[leaf]]) == 2), leaf


@pytest.mark.parametrize("clip_norm", [0.0, 0.01, 1e9])
def test_first_step_moves_each_weight_by_the_learning_rate(clip_norm, params, assert_close):
    """Closed form: at step 1 the direction is g / |g| however g is scaled, and decay is added to it."""
    config = OptimizerConfig(clip_norm=clip_norm, weight_decay=0.0, epsilon=1e-30)
    gradients = random_like(params, 0)
    new, _, _ = optimizer_update(
        params, gradients, optimizer_init(params, CONFIG), config, scalars_at(0, 0.25, config=config)
    )
    for name, old, got, g in zip(LEAF_NAMES, *map(leaves, (params, new, gradients)), strict=True):
        assert_close(name, got, old - 0.25 * g.sign(), rel=1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("leaf", [0, 5, 15])
def test_a_gradient_that_is_not_finite_changes_nothing(poison, leaf, params):
    state = optimizer_init(params, CONFIG) | {"first": named_leaves(random_like(params, 1))}
    gradients = leaves(random_like(params, 2))
    gradients[leaf].view(-1)[-1] = poison
    new, new_state, outcome = optimizer_update(params, from_leaves(gradients), state, CONFIG, scalars_at(0))
    assert not outcome.updated
    before, after = named_leaves(params), named_leaves(new)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    for tree, values in state.items():
        assert all(torch.equal(value, new_state[tree][name]) for name, value in values.items())


def test_a_norm_above_the_limit_changes_nothing(params):
    gradients = random_like(params, 3)
    _, _, outcome = optimizer_update(params, gradients, optimizer_init(params, CONFIG), CONFIG, scalars_at(0))
    norm = float(outcome.grad_norm)
    for limit, expected in ((norm, True), (norm * 0.999, False)):
        new, _, outcome = optimizer_update(
            params, gradients, optimizer_init(params, CONFIG), CONFIG, scalars_at(0, skip_above=limit)
        )
        assert bool(outcome.updated) is expected
        assert torch.equal(new.wte, params.wte) is not expected


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_zero_gradients_only_decay(optimizer, params, assert_close):
    config = replace(CONFIG, optimizer=optimizer, muon_lr_factor=2.0)
    zero = map_leaves(torch.zeros_like, params)
    state, scalars = optimizer_init(params, config), scalars_at(0, 0.1, config=config)
    new, _, outcome = optimizer_update(params, zero, state, config, scalars)
    assert outcome.updated
    for name, old, got in zip(LEAF_NAMES, leaves(params), leaves(new), strict=True):
        rate = 0.2 if name in state.get("momentum", {}) else 0.1
        assert_close(name, got, old * (1 - 0.1 * rate * (name in MATRICES)), rel=1e-6)


def test_muon_moves_each_matrix_by_an_orthogonal_step_and_the_rest_as_adamw(params):
    """Queries, keys and values each for itself; maps that widen move further, by the root of their shape."""
    gradients, adamw = random_like(params, 4), OptimizerConfig(weight_decay=0.0)
    muon = replace(adamw, optimizer="muon", muon_lr_factor=2.0)
    (new, state, _), (plain, _, _) = (
        optimizer_update(params, gradients, optimizer_init(params, c), c, scalars_at(0, 0.5, config=c))
        for c in (muon, adamw)
    )
    assert state["momentum"].keys() == BLOCK_MATRICES
    assert state["first"].keys() == state["second"].keys() == set(LEAF_NAMES) - BLOCK_MATRICES
    for name, old, got, other in zip(LEAF_NAMES, *map(leaves, (params, new, plain)), strict=True):
        if name not in BLOCK_MATRICES:
            assert torch.equal(got, other), name
            continue
        for step in (old - got).chunk(3 if name == "qkv_weight" else 1, dim=-1):
            sizes = torch.linalg.svdvals(step) / max(1.0, step.shape[-1] / step.shape[-2]) ** 0.5
            assert 0.3 < sizes.min() <= sizes.median() <= sizes.max() < 1.25, name


def test_muon_goes_on_as_torchs_own_does(params, assert_close):
    """Whose products are bfloat16, and whose matrices are (out, in)."""
    config = OptimizerConfig(optimizer="muon", muon_lr_factor=1.0, clip_norm=0.0)
    theirs = [torch.nn.Parameter(each.T.contiguous()) for each in params.blocks.down_weight]
    outside = torch.optim.Muon(theirs, lr=1e-2, weight_decay=config.weight_decay)
    state, ours = optimizer_init(params, config), params
    for step in range(4):
        gradients = random_like(params, step)
        for p, g in zip(theirs, gradients.blocks.down_weight, strict=True):
            p.grad = g.T.contiguous()
        outside.step()
        scalars = scalars_at(step, config=config)
        ours, state, _ = optimizer_update(ours, gradients, state, config, scalars, torch.bfloat16)
    start = params.blocks.down_weight
    moved = torch.stack([p.detach().T for p in theirs]) - start
    assert_close("down_weight", ours.blocks.down_weight - start, moved, rel=0.02)
