"""AdamW: against torch's own, what decays, what is clipped, what is skipped, and that it is traced once."""

from __future__ import annotations

import math

import pytest
import torch
from gpt_torchfunc.optimizer import MATRICES, StepScalars, adamw_init, adamw_update, step_scalars
from gpt_torchfunc.tree import BLOCK_NAMES, LEAF_NAMES, from_leaves, leaves, map_leaves
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.parameters import decays, parameter_shapes

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
    state, ours = adamw_init(params), params
    for step in range(10):
        lr = 1e-2 * (step + 1)
        gradients = random_like(params, step)
        for p, g in zip(outside, leaves(gradients), strict=True):
            p.grad = g.double()
        norm = torch.nn.utils.clip_grad_norm_(outside, CONFIG.clip_norm)
        for group in theirs.param_groups:
            group["lr"] = lr
        theirs.step()
        ours, state, outcome = adamw_update(ours, gradients, state, CONFIG, scalars_at(step, lr))
        assert_close("norm", outcome.grad_norm, norm, rel=1e-6)
    for name, got, want in zip(LEAF_NAMES, leaves(ours), outside, strict=True):
        # torch divides by norm + 1e-6
        assert_close(name, got, want, rel=1e-5)


def test_what_decays_is_what_the_shared_rule_says(config):
    canonical = {
        "wte": "transformer.wte.weight",
        "wpe": "transformer.wpe.weight",
        "ln_f_gain": "transformer.ln_f.weight",
        "ln_f_bias": "transformer.ln_f.bias",
    }
    canonical |= {field: f"transformer.h.0.{name}" for field, name in BLOCK_NAMES.items()}
    shapes = parameter_shapes(config)
    for leaf in LEAF_NAMES:
        assert (leaf in MATRICES) == decays(canonical[leaf], shapes[canonical[leaf]]), leaf


@pytest.mark.parametrize("clip_norm", [0.0, 0.01, 1e9])
def test_first_step_moves_each_weight_by_the_learning_rate(clip_norm, params, assert_close):
    """Closed form: at step 1 the direction is g / |g| however g is scaled, and decay is added to it."""
    config = OptimizerConfig(clip_norm=clip_norm, weight_decay=0.0, epsilon=1e-30)
    gradients = random_like(params, 0)
    new, _, _ = adamw_update(
        params, gradients, adamw_init(params), config, scalars_at(0, 0.25, config=config)
    )
    for name, old, got, g in zip(LEAF_NAMES, *map(leaves, (params, new, gradients)), strict=True):
        assert_close(name, got, old - 0.25 * g.sign(), rel=1e-5)


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("leaf", [0, 5, 15])
def test_a_gradient_that_is_not_finite_changes_nothing(poison, leaf, params):
    state = adamw_init(params)._replace(first=random_like(params, 1))
    gradients = leaves(random_like(params, 2))
    gradients[leaf].view(-1)[-1] = poison
    new, new_state, outcome = adamw_update(params, from_leaves(gradients), state, CONFIG, scalars_at(0))
    assert not outcome.updated
    for old, kept in zip((params, *state), (new, *new_state), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(leaves(old), leaves(kept), strict=True))


def test_a_norm_above_the_limit_changes_nothing(params):
    gradients = random_like(params, 3)
    _, _, outcome = adamw_update(params, gradients, adamw_init(params), CONFIG, scalars_at(0))
    norm = float(outcome.grad_norm)
    for limit, expected in ((norm * 1.001, True), (norm * 0.999, False)):
        new, _, outcome = adamw_update(
            params, gradients, adamw_init(params), CONFIG, scalars_at(0, skip_above=limit)
        )
        assert bool(outcome.updated) is expected
        assert torch.equal(new.wte, params.wte) is not expected


def test_zero_gradients_only_decay(params, assert_close):
    zero = map_leaves(torch.zeros_like, params)
    new, _, outcome = adamw_update(params, zero, adamw_init(params), CONFIG, scalars_at(0, 0.1))
    assert outcome.updated
    for name, old, got in zip(LEAF_NAMES, leaves(params), leaves(new), strict=True):
        assert_close(name, got, old * (1 - 0.1 * 0.1 * (name in MATRICES)), rel=1e-6)
