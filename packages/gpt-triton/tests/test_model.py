"""The whole model: gradients against torch.func and finite differences, and what attention may not see."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from gpt_data.batch import Batch
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import BLOCK_NAMES, Parameters
from gpt_triton import reference
from gpt_triton.dropout import dropout_keys
from gpt_triton.loss import add_gradients
from gpt_triton.model import Inputs, Plan, Stretch, hidden_states, hidden_states_fwd
from gpt_triton.ops import Keep
from gpt_triton.options import KeepChoice
from gpt_triton.plan import KEEPS
from gpt_triton.tree import from_canonical, layout_of, to_canonical, view_as_tree
from gpt_triton_plain import PlainModel

Check = Callable[..., None]
CPU = torch.device("cpu")
MASKS = (2**33 + 1, 4, 5)  # seed, step, first row


def ours(
    config: ModelConfig, weights: Parameters, batch: Batch, dtype: torch.dtype, keep: Keep = KEEPS["all"]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients by canonical name, in ``dtype`` throughout; bfloat16 gradients in float32."""
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    flat = from_canonical(weights, config, CPU).flat.to(wide)
    params, sums = (
        view_as_tree(flat.to(dtype), config, flat),
        view_as_tree(torch.zeros_like(flat), config),
    )
    plan = Plan(config.n_head, config.vocab_size, reference, dtype, keep, config.dropout)
    weight = torch.tensor(1.0 / batch.target_count, dtype=wide)
    keys = dropout_keys(*MASKS, config.n_layer) if config.dropout else None
    loss = add_gradients(params, sums, _inputs(batch), plan, weight, keys)
    layout = layout_of(config)
    return float(loss), {
        name: sums.flat[layout.starts[name] :][: value.size].view(value.shape)
        for name, value in weights.items()
    }


def _inputs(batch: Batch) -> Inputs:
    fields = (batch.tokens, batch.targets, batch.positions.copy(), batch.segment_starts)
    return Inputs(*(None if field is None else torch.from_numpy(field) for field in fields))


def plain(
    config: ModelConfig, weights: Parameters, batch: Batch, dtype: torch.dtype
) -> tuple[float, dict[str, torch.Tensor]]:
    """The same by torch.func over the plain model."""
    model = PlainModel(config, batch, MASKS)
    tensors = {name: torch.from_numpy(value).to(dtype) for name, value in weights.items()}
    gradients, loss = torch.func.grad_and_value(model.loss)(tensors)
    return float(loss), gradients


@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("boundaries", [False, True])
def test_gradients_equal_torch_func_in_float64(
    rate: float,
    boundaries: bool,
    config: ModelConfig,
    weights: Parameters,
    batch: Batch,
    packed: Batch,
    assert_close: Check,
) -> None:
    config = replace(config, dropout=rate)
    rows = packed if boundaries else batch
    loss, gradients = ours(config, weights, rows, torch.float64)
    want_loss, want = plain(config, weights, rows, torch.float64)
    assert_close("loss", loss, want_loss, "float64")
    for name, value in gradients.items():
        assert_close(name, value, want[name], "float64")


def test_gradients_equal_finite_differences(
    config: ModelConfig, weights: Parameters, packed: Batch, assert_close: Check
) -> None:
    config = replace(config, dropout=0.2)
    _, gradients = ours(config, weights, packed, torch.float64)
    model = PlainModel(config, packed, MASKS)
    stream = np.random.default_rng(1)
    for name, gradient in gradients.items():
        direction = torch.from_numpy(stream.standard_normal(gradient.shape))
        ends = []
        for sign in (1.0, -1.0):
            moved = {n: torch.from_numpy(v).double() for n, v in weights.items()}
            moved[name] = moved[name] + sign * 1e-5 * direction / direction.norm()
            ends.append(model.loss(moved))
        slope = (ends[0] - ends[1]) / 2e-5
        # key biases shift every score of a row alike, so that a part of that gradient is zero in exact terms
        assert (
            abs(slope - (gradient * direction).sum() / direction.norm()) <= 1e-8 * gradient.norm() + 1e-9
        ), name


@pytest.mark.parametrize("keep", [Keep(*kept) for kept in product([False, True], repeat=3)][:-1], ids=str)
def test_what_is_computed_again_is_the_same_to_the_bit(
    keep: Keep, config: ModelConfig, weights: Parameters, packed: Batch
) -> None:
    config = replace(config, dropout=0.2)
    loss, gradients = ours(config, weights, packed, torch.float32, keep)
    want_loss, want = ours(config, weights, packed, torch.float32)
    assert loss == want_loss
    for name, value in gradients.items():
        assert torch.equal(value, want[name]), name


@pytest.mark.parametrize("boundaries", [False, True])
def test_float32_gradients_keep_the_rule(
    boundaries: bool,
    config: ModelConfig,
    weights: Parameters,
    batch: Batch,
    packed: Batch,
    assert_close: Check,
) -> None:
    rows = packed if boundaries else batch
    loss, gradients = ours(config, weights, rows, torch.float32)
    want_loss, want = plain(config, weights, rows, torch.float64)
    assert_close("loss", loss, want_loss, "float32")
    for name, value in gradients.items():
        assert_close(name, value, want[name], "float32")


def test_bfloat16_gradients_err_at_most_twice_as_much_as_plain_torch(
    config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    _, gradients = ours(config, weights, batch, torch.bfloat16)
    _, theirs = plain(config, weights, batch, torch.bfloat16)
    _, want = plain(config, weights, batch, torch.float64)
    for name, value in gradients.items():
        ours_off = (value.double() - want[name]).norm()
        theirs_off = (theirs[name].double() - want[name]).norm()
        assert ours_off <= 2.0 * theirs_off, f"{name}: {ours_off:.2e} against {theirs_off:.2e}"


# 6 D for a token always: the stream twice, heads, attention's output; both norms' D, GELU's 4 D, its slope's
@pytest.mark.parametrize(("keep", "widths"), [("all", 16), ("most", 15), ("less", 7)])
def test_a_block_keeps_as_much_as_it_is_told(
    keep: KeepChoice, widths: int, config: ModelConfig, weights: Parameters, batch: Batch
) -> None:
    plan = Plan(config.n_head, config.vocab_size, reference, keep=KEEPS[keep])
    _, residuals = hidden_states_fwd(from_canonical(weights, config, CPU), _inputs(batch), plan)
    for norm1, normed1, attention, norm2, normed2, hidden, slope in residuals.blocks:
        kept = (norm1.x, normed1, attention.qkv, attention.out, norm2.x, normed2, hidden, slope)
        counted = sum(each.numel() for each in kept if each is not None)
        assert counted == widths * batch.tokens.size * config.d_model


def _hidden(config: ModelConfig, weights: Parameters, batch: Batch) -> torch.Tensor:
    plan = Plan(config.n_head, config.vocab_size, reference)
    hidden = hidden_states(from_canonical(weights, config, CPU), _inputs(batch), plan)
    return hidden.view(*batch.tokens.shape, -1)


def test_a_token_changes_nothing_before_it(config: ModelConfig, weights: Parameters, batch: Batch) -> None:
    before = _hidden(config, weights, batch)
    tokens = batch.tokens.copy()
    tokens[:, 6] = (tokens[:, 6] + 1) % config.vocab_size
    after = _hidden(config, weights, batch._replace(tokens=tokens))
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.equal(before[:, 6:], after[:, 6:])


def test_a_packed_row_equals_its_documents_apart(
    config: ModelConfig, weights: Parameters, packed: Batch, assert_close: Check
) -> None:
    assert packed.segment_starts is not None
    together = _hidden(config, weights, packed)
    for row, starts in enumerate(packed.segment_starts):
        edges = [*np.unique(starts).tolist(), config.context]
        for begin, end in pairwise(edges):
            piece = packed.tokens[row : row + 1, begin:end]
            apart = _hidden(config, weights, Batch(piece, piece))
            assert_close(f"row {row}, {begin}-{end}", together[row, begin:end], apart[0], "split")


def test_a_row_does_not_depend_on_its_neighbours(
    config: ModelConfig, weights: Parameters, packed: Batch, assert_close: Check
) -> None:
    together = _hidden(config, weights, packed)
    for row in range(4):
        assert_close(
            f"row {row}", together[row], _hidden(config, weights, packed.rows(row, row + 1))[0], "split"
        )


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_logits_equal_hugging_face(
    config: ModelConfig, weights: Parameters, batch: Batch, assert_close: Check
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context,
        n_embd=config.d_model,
        n_layer=config.n_layer,
        n_head=config.n_head,
    )
    with torch.random.fork_rng():
        theirs = GPT2LMHeadModel(sizes).eval()
    state = {name: torch.from_numpy(value) for name, value in weights.items()}
    theirs.load_state_dict(state | {"lm_head.weight": state["transformer.wte.weight"]})
    with torch.no_grad():
        want = theirs(torch.from_numpy(batch.tokens).long()).logits
    got = _hidden(config, weights, batch) @ state["transformer.wte.weight"].T
    assert_close("logits", got, want, "float32")


def test_layout_is_aligned_and_loads_what_it_stores(config: ModelConfig, weights: Parameters) -> None:
    layout, tree = layout_of(config), from_canonical(weights, config, CPU)
    for name, value in to_canonical(Stretch(tree.flat), config).items():
        assert value.tobytes() == weights[name].tobytes(), name
    decayed = {name for name, start in layout.starts.items() if start < layout.decay_count}
    assert decayed == {name for name, value in weights.items() if value.ndim == 2}
    assert all(start % 64 == 0 for start in layout.starts.values())
    assert tree.wte.shape[0] % 128 == 0
    assert not tree.wte[config.vocab_size :].any()
    assert int((tree.flat != 0).sum()) <= sum(value.size for value in weights.values())
    for layer, block in enumerate(tree.blocks):
        for field, leaf in zip(block._fields, block, strict=True):
            want = weights[f"transformer.h.{layer}.{BLOCK_NAMES[field]}"]
            assert leaf.numpy().tobytes() == want.tobytes(), field
