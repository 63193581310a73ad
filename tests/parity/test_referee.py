"""The referee is checked before it judges: finite differences, and an outside GPT-2 in float64."""

from __future__ import annotations

import numpy as np
import pytest
import referee
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import parameter_shapes

TINY = ModelConfig(n_layer=2, n_head=3, d_model=12, context=9, vocab_size=17, dropout=0.25)


def random_parameters(config: ModelConfig, seed: int) -> referee.Tree:
    draw = np.random.default_rng(seed)
    return {
        name: draw.normal(0.0, 0.3, shape) + (1.0 if "ln_" in name and name.endswith("weight") else 0.0)
        for name, shape in parameter_shapes(config).items()
    }


def random_batch(config: ModelConfig, rows: int, seed: int, documents: bool) -> Batch:
    draw = np.random.default_rng(seed)
    shape = (rows, config.context)
    tokens, targets = draw.integers(0, config.vocab_size, (2, *shape), dtype=np.int32)
    if not documents:
        return Batch(tokens, targets)
    opens = draw.random(shape) < 0.3
    opens[:, 0] = True
    starts = np.maximum.accumulate(np.where(opens, np.arange(config.context), 0), axis=1).astype(np.int32)
    targets[:, :-1][opens[:, 1:]] = IGNORE
    return Batch(tokens, targets, starts)


@pytest.mark.parametrize("documents", [False, True], ids=["stream", "documents"])
def test_gradients_match_central_differences(documents: bool) -> None:
    p = random_parameters(TINY, 1)
    batches = [random_batch(TINY, rows, 2 + rows, documents) for rows in (2, 2)]
    _, grads = referee.loss_and_gradients(p, batches, TINY, seed=5, step=3)
    draw = np.random.default_rng(7)
    for name, value in p.items():
        direction = draw.normal(size=value.shape)
        direction /= np.linalg.norm(direction)
        ends = []
        for sign in (1.0, -1.0):
            moved = p | {name: value + sign * 1e-5 * direction}
            ends.append(referee.loss_and_gradients(moved, batches, TINY, seed=5, step=3)[0])
        numeric = (ends[0] - ends[1]) / 2e-5
        assert abs(numeric - np.vdot(grads[name], direction)) <= 1e-8, name


def test_key_bias_has_no_gradient_as_softmax_ignores_a_constant() -> None:
    p = random_parameters(TINY, 1)
    _, grads = referee.loss_and_gradients(p, [random_batch(TINY, 2, 3, False)], TINY, seed=0, step=0)
    key_bias = grads["transformer.h.0.attn.c_attn.bias"][TINY.d_model : 2 * TINY.d_model]
    assert np.abs(key_bias).max() <= 1e-15


def test_logits_and_gradients_match_hugging_face_in_float64() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = ModelConfig(n_layer=3, n_head=4, d_model=20, context=11, vocab_size=29)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=3,
            n_head=4,
            n_embd=20,
            n_positions=11,
            vocab_size=29,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    batch = random_batch(sizes, 3, 4, False)
    ids = torch.from_numpy(batch.tokens.astype(np.int64))
    logits = model(ids).logits
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, 29), torch.from_numpy(batch.targets.astype(np.int64)).reshape(-1)
    )
    loss.backward()
    named = dict(model.named_parameters())
    p = {name: named[name].detach().numpy() for name in parameter_shapes(sizes)}
    got, _, _ = referee.forward(p, batch, sizes)
    assert np.linalg.norm(got - logits.detach().numpy()) <= 1e-12 * np.linalg.norm(got)
    got_loss, grads = referee.loss_and_gradients(p, [batch], sizes, 0, 0)
    assert abs(got_loss - loss.item()) <= 1e-12
    for name, grad in grads.items():
        want = named[name].grad.numpy()
        assert np.linalg.norm(grad - want) <= 1e-10 * np.linalg.norm(want), name


def test_adamw_matches_torch() -> None:
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    p = {"w": draw.normal(size=(3, 4)), "b": draw.normal(size=5)}
    theirs = {name: torch.nn.Parameter(torch.from_numpy(value.copy())) for name, value in p.items()}
    groups = [{"params": [theirs["w"]], "weight_decay": 0.1}, {"params": [theirs["b"]], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=3e-3, betas=(0.9, 0.95), eps=1e-8)
    config = OptimizerConfig()
    state = referee.optimizer_init(p, config)
    for step in range(5):
        grads = {name: draw.normal(size=value.shape) for name, value in p.items()}
        for name, parameter in theirs.items():
            parameter.grad = torch.from_numpy(grads[name].copy())
        torch.nn.utils.clip_grad_norm_(list(theirs.values()), 1.0)
        optimizer.step()
        p, state = referee.optimize(p, grads, state, step, 3e-3, config)
    for name, parameter in theirs.items():
        # torch's clipping divides by norm + 1e-6
        assert np.linalg.norm(p[name] - parameter.detach().numpy()) <= 1e-6 * np.linalg.norm(p[name])


def test_muon_is_torchs_but_for_its_bfloat16() -> None:
    torch = pytest.importorskip("torch")
    draw = np.random.default_rng(0)
    config = OptimizerConfig(optimizer="muon", muon_lr_factor=4.0, clip_norm=0.0)
    prefix = "transformer.h.0."
    wide, tall, triple = (
        prefix + name for name in ("mlp.c_fc.weight", "mlp.c_proj.weight", "attn.c_attn.weight")
    )
    p = {wide: draw.normal(size=(6, 24)), tall: draw.normal(size=(24, 6)), triple: draw.normal(size=(6, 18))}
    start, state = p, referee.optimizer_init(p, config)
    assert [list(tree) for tree in state.values()] == [list(p), [], []]

    def parts(name: str, value: np.ndarray) -> list[np.ndarray]:
        return np.split(value, 3 if name == triple else 1, axis=1)

    theirs = {n: [torch.nn.Parameter(torch.from_numpy(v.T.copy())) for v in parts(n, p[n])] for n in p}
    muon = torch.optim.Muon([v for values in theirs.values() for v in values], lr=4e-2, weight_decay=0.1)
    for step in range(5):
        grads = {name: draw.normal(size=value.shape) for name, value in p.items()}
        for name, parameters in theirs.items():
            for parameter, grad in zip(parameters, parts(name, grads[name]), strict=True):
                parameter.grad = torch.from_numpy(grad.T.copy())
        muon.step()
        p, state = referee.optimize(p, grads, state, step, 1e-2, config)
    for name, parameters in theirs.items():
        moved = np.hstack([each.detach().numpy().T for each in parameters]) - start[name]
        assert np.linalg.norm(p[name] - start[name] - moved) <= 0.02 * np.linalg.norm(moved), name


@pytest.mark.parametrize("shape", [(20, 20), (12, 50), (50, 12)])
def test_orthogonalize_takes_singular_values_by_the_published_polynomial(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(1).normal(size=shape)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / np.linalg.norm(x)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert np.abs(referee.orthogonalize(x) - u * s @ v).max() <= 1e-6
    assert 0.3 < s.min() <= s.max() < 1.3
    assert not referee.orthogonalize(0.0 * x).any()
