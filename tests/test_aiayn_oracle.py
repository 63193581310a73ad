"""The encoder-decoder against ``torch.nn.Transformer`` with the same weights, and against torch's Adam.

torch adds a LayerNorm after each stack, which the paper does not have: it is taken out. torch runs in
float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from aiayn_jax.config import TransformerConfig
from aiayn_jax.loss import weighted_losses
from aiayn_jax.model import decode, encode, init_parameters, positions
from aiayn_jax.optimizer import AdamConfig, AdamScalars, adam_init, adam_scalars, adam_update
from aiayn_jax.parameters import PairBatch, Parameters
from aiayn_jax.plan import Plan, make_plan
from aiayn_jax.step import make_evaluate, send
from aiayn_jax.tree import from_named, to_named
from gpt_data.batch import IGNORE

# odd sizes; 61 ids do not fill the padded vocabulary
CONFIG = TransformerConfig(vocab_size=61, n_layer=2, n_head=2, d_model=12, d_ff=20, dropout=0.0, longest=32)
TORCH_NAMES = {
    "qkv_weight": "in_proj_weight",
    "qkv_bias": "in_proj_bias",
    "out_weight": "out_proj.weight",
    "out_bias": "out_proj.bias",
    "up_weight": "linear1.weight",
    "up_bias": "linear1.bias",
    "down_weight": "linear2.weight",
    "down_bias": "linear2.bias",
}
ATTENTIONS = {"attention": "self_attn", "cross": "multihead_attn"}
NORMS = {
    "encoder": {"attention": "norm1", "network": "norm2"},
    "decoder": {"attention": "norm1", "cross": "norm2", "network": "norm3"},
}


class Setup(NamedTuple):
    values: dict[str, np.ndarray]
    params: Parameters
    plan: Plan
    model: torch.nn.Transformer
    embedding: torch.Tensor
    batch: PairBatch


def torch_name(name: str) -> str:
    """``encoder.0.attention.qkv_weight`` is ``encoder.layers.0.self_attn.in_proj_weight``."""
    stack, layer, part, field = name.split(".")
    place = f"{stack}.layers.{layer}."
    if field.startswith("norm"):
        return place + NORMS[stack][part] + (".weight" if field == "norm_gain" else ".bias")
    return place + (f"{ATTENTIONS[part]}." if part in ATTENTIONS else "") + TORCH_NAMES[field]


def to_torch(values: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    # torch's weights are (out, in); the transpose of a vector is itself
    return {torch_name(n): torch.from_numpy(v.T).double() for n, v in values.items() if n != "embedding"}


def assert_close(name: str, got: object, want: object, *, rel: float) -> None:
    got, want = (np.asarray(a, np.float64) for a in (got, want))
    assert got.shape == want.shape, f"{name}: {got.shape} != {want.shape}"
    assert np.isfinite(got).all(), name
    error = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
    assert error <= rel, f"{name}: relative error {error:.1e} > {rel:.0e}"


def make_batch() -> PairBatch:
    """Sources of 7, 3, 1 and 5 ids; targets of 9, 4, 9 and 1."""
    rng = np.random.default_rng(0)
    source, target = (rng.integers(0, 61, (4, length)).astype(np.int32) for length in (7, 10))
    target_in, target_out = target[:, :-1].copy(), target[:, 1:].copy()
    for row, length in enumerate((9, 4, 9, 1)):
        target_out[row, length:] = IGNORE
    return PairBatch(source, np.array([7, 3, 1, 5], np.int32), target_in, target_out)


@pytest.fixture(scope="module")
def setup() -> Setup:
    plan = make_plan(CONFIG, device="cpu")
    rng = np.random.default_rng(1)
    # gains and biases away from one and zero, so that none of them can be left out unseen
    values = {
        n: v + rng.normal(0, 0.1, v.shape).astype(np.float32)
        for n, v in to_named(init_parameters(CONFIG, 0), CONFIG).items()
    }
    sizes = {"num_encoder_layers": 2, "num_decoder_layers": 2, "dim_feedforward": 20, "dropout": 0.0}
    model = torch.nn.Transformer(12, 2, **sizes, batch_first=True, norm_first=False).double()
    model.encoder.norm = model.decoder.norm = None
    model.load_state_dict(to_torch(values))
    embedding = torch.from_numpy(values["embedding"]).double().requires_grad_()
    return Setup(values, from_named(values, CONFIG), plan, model, embedding, make_batch())


def embed_in_torch(embedding: torch.Tensor, ids: np.ndarray) -> torch.Tensor:
    table = torch.from_numpy(positions(ids.shape[1], 12))
    return embedding[torch.from_numpy(ids).long()] * 12**0.5 + table


def run_torch(setup: Setup) -> tuple[torch.Tensor, torch.Tensor]:
    source, lengths, target_in, _ = setup.batch
    padding = torch.arange(source.shape[1])[None] >= torch.from_numpy(lengths)[:, None]
    causal = torch.ones(target_in.shape[1], target_in.shape[1], dtype=torch.bool).triu(1)
    memory = setup.model.encoder(embed_in_torch(setup.embedding, source), src_key_padding_mask=padding)
    target = embed_in_torch(setup.embedding, target_in)
    out = setup.model.decoder(target, memory, tgt_mask=causal, memory_key_padding_mask=padding)
    return memory, out


def test_outputs_equal_torch(setup: Setup) -> None:
    inputs = send(setup.batch, setup.plan)
    memory, out = run_torch(setup)
    got_memory = encode(setup.params, inputs.source, inputs.source_lengths, setup.plan)
    for row, length in enumerate(setup.batch.source_lengths):
        assert_close(f"memory {row}", got_memory[row, :length], memory[row, :length].detach(), rel=1e-5)
    got = decode(setup.params, got_memory, inputs.source_lengths, inputs.target_in, setup.plan)
    assert_close("decoder", got, out.detach(), rel=1e-5)


def test_losses_and_gradients_equal_torch(setup: Setup) -> None:
    _, out = run_torch(setup)
    z, targets = out @ setup.embedding.T, torch.from_numpy(setup.batch.target_out).long()
    cross_entropy = torch.nn.functional.cross_entropy
    plain = cross_entropy(z.flatten(0, 1), targets.flatten(), ignore_index=IGNORE)
    smoothed = cross_entropy(z.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, label_smoothing=0.1)
    smoothed.backward()
    weight = jnp.float32(1 / np.count_nonzero(setup.batch.target_out != IGNORE))
    differentiate: Callable = jax.value_and_grad(weighted_losses, has_aux=True)
    inputs = send(setup.batch, setup.plan)
    (got_smoothed, got_plain), gradients = differentiate(setup.params, inputs, setup.plan, weight)
    assert float(got_smoothed) == pytest.approx(smoothed.item(), rel=1e-6)
    assert float(got_plain) == pytest.approx(plain.item(), rel=1e-6)
    theirs = dict(setup.model.named_parameters())
    for name, got in to_named(gradients, CONFIG).items():
        want = setup.embedding.grad if name == "embedding" else theirs[torch_name(name)].grad.numpy().T
        assert_close(name, got, want, rel=1e-5)


def test_evaluation_neither_drops_nor_smooths(setup: Setup) -> None:
    _, out = run_torch(setup)
    z, targets = (out @ setup.embedding.T).flatten(0, 1), torch.from_numpy(setup.batch.target_out).long()
    want = torch.nn.functional.cross_entropy(z, targets.flatten(), ignore_index=IGNORE, reduction="sum")
    total, count = make_evaluate(CONFIG, setup.plan)(setup.params, setup.batch)
    assert count == np.count_nonzero(setup.batch.target_out != IGNORE)
    assert total == pytest.approx(want.item(), rel=1e-6)


def test_adam_equals_torch(setup: Setup) -> None:
    rng, settings = np.random.default_rng(2), AdamConfig()
    params, state = setup.params, adam_init(setup.params)
    theirs = {n: torch.from_numpy(v).double().requires_grad_() for n, v in setup.values.items()}
    optimizer = torch.optim.Adam(theirs.values(), betas=(0.9, 0.98), eps=1e-9)
    for step in range(3):
        # 1e-9 and below: where epsilon counts
        gradients = {
            n: (rng.normal(size=v.shape) * 10.0 ** rng.integers(-12, 1, v.shape)).astype(np.float32)
            for n, v in setup.values.items()
        }
        scalars = AdamScalars(*jnp.asarray(adam_scalars(settings, 1e-2, step)))
        params, state, outcome = adam_update(params, from_named(gradients, CONFIG), state, settings, scalars)
        assert bool(outcome.updated)
        for name, tensor in theirs.items():
            tensor.grad = torch.from_numpy(gradients[name]).double()
        optimizer.param_groups[0]["lr"] = 1e-2
        optimizer.step()
    for name, got in to_named(params, CONFIG).items():
        moved = theirs[name].detach().numpy() - setup.values[name]
        assert_close(name, got.astype(np.float64) - setup.values[name], moved, rel=1e-5)
