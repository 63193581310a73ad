"""The function itself: values, causality, documents, precision, decoding."""

from __future__ import annotations

from dataclasses import replace

import gpt_jax_oracle as oracle
import numpy as np
import pytest
from gpt_data.batch import IGNORE, Batch
from gpt_jax.backend import JaxBackend
from gpt_jax.options import Options
from gpt_jax_toy import SMALL, assert_close, build, make_batch, noisy_parameters, relative_error
from gpt_trainer.backend import OptimizerConfig, Runtime


@pytest.mark.parametrize("packed", [False, True], ids=["stream", "documents"])
def test_logits_and_log_probs_equal_float64(backend: JaxBackend, packed: bool) -> None:
    batch = make_batch(2, 19, packed=packed)
    values = noisy_parameters(SMALL)
    assert_close("logits", backend.logits(batch), oracle.logits(values, batch, SMALL), rel=1e-5)
    want = oracle.log_probs(values, batch, SMALL)
    assert_close("log-probabilities", backend.log_probs(batch), want, rel=1e-5)
    total, count = backend.evaluate(batch)
    assert count == batch.target_count
    assert total == pytest.approx(-want.sum(), rel=1e-5)


def test_logits_equal_hugging_face(backend: JaxBackend) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 12, "n_positions": 19, "vocab_size": 61}
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).double().eval()
    weights = {n: torch.from_numpy(v).double() for n, v in noisy_parameters(SMALL).items()}
    model.load_state_dict(weights | {"lm_head.weight": weights["transformer.wte.weight"]})
    batch = make_batch(2, 19)
    want = model(torch.from_numpy(batch.tokens).long()).logits.detach().numpy()
    assert_close("logits", backend.logits(batch), want, rel=1e-5)


def test_later_tokens_leave_earlier_logits_bit_equal(backend: JaxBackend) -> None:
    batch = make_batch(2, 19)
    changed = batch.tokens.copy()
    changed[:, 11:] = (changed[:, 11:] + 1) % SMALL.vocab_size
    before, after = backend.logits(batch), backend.logits(batch._replace(tokens=changed))
    assert np.array_equal(before[:, :11], after[:, :11])
    assert not np.array_equal(before[:, 11:], after[:, 11:])


def test_packed_documents_equal_documents_apart(backend: JaxBackend) -> None:
    batch = make_batch(1, 14, packed=True)  # two documents of seven tokens
    halves = [Batch(batch.tokens[:, s], batch.targets[:, s]) for s in (slice(0, 7), slice(7, 14))]
    apart = np.concatenate([backend.log_probs(half) for half in halves], 1)
    assert_close("log-probabilities", backend.log_probs(batch), apart, rel=1e-6)


def test_equal_logits_cost_log_vocabulary() -> None:
    backend = build()
    backend.load({name: np.zeros_like(value) for name, value in noisy_parameters(SMALL).items()})
    total, count = backend.evaluate(make_batch(2, 19))
    # padding columns must take no share of the probability
    assert total / count == pytest.approx(np.log(SMALL.vocab_size), rel=1e-6)


def test_decoder_equals_the_full_pass(backend: JaxBackend) -> None:
    tokens, full = make_batch(2, 19).tokens, backend.logits(make_batch(2, 19))
    decoder = backend.decoder(2)
    # a prompt, single tokens, several at once up to the very end of the context
    for start, stop in [(0, 5), (5, 6), (6, 7), (7, 19)]:
        assert_close(f"to {stop}", decoder.feed(tokens[:, start:stop]), full[:, stop - 1], rel=1e-5)
    with pytest.raises(ValueError, match="context of 19"):
        decoder.feed(tokens[:, :1])


def test_bfloat16_is_near_float32(backend: JaxBackend) -> None:
    batch = make_batch(2, 19)
    error = relative_error(build(precision="bfloat16").logits(batch), backend.logits(batch))
    assert 1e-4 < error < 3e-2  # 8 bits of mantissa: not float32 under another name, and no worse than that


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (np.full((1, 4), 61), "tokens span 61..61, outside the vocabulary of 61"),
        (np.full((1, 4), -1), "tokens span"),
        (np.zeros((1, 20)), "context=19"),
    ],
    ids=["above", "below", "long"],
)
def test_bad_tokens_are_refused(backend: JaxBackend, tokens: np.ndarray, message: str) -> None:
    tokens = tokens.astype(np.int32)
    with pytest.raises(ValueError, match=message):
        backend.log_probs(Batch(tokens, np.full_like(tokens, IGNORE)))


def test_forks_of_unequal_sequences_score_as_whole_rows(backend: JaxBackend) -> None:
    # contexts of 5, 0, 3 and 7 tokens that end together; endings of 6 (up to 13), 6, 1, 4 and 2 tokens
    stream, lengths = np.random.default_rng(4), np.array([5, 0, 3, 7])
    rows, counts = np.array([3, 0, 0, 1, 2]), (6, 6, 1, 4, 2)
    held = stream.integers(0, SMALL.vocab_size, (4, 7), dtype=np.int32)
    tokens, targets = stream.integers(0, SMALL.vocab_size, (2, 5, 6), dtype=np.int32)
    whole = Batch(np.zeros((5, 13), np.int32), np.full((5, 13), IGNORE, np.int32))
    for line, (row, count) in enumerate(zip(rows, counts, strict=True)):
        targets[line, count:] = IGNORE
        start, stop = lengths[row], lengths[row] + count
        whole.tokens[line, :stop] = [*held[row, 7 - start :], *tokens[line, :count]]
        whole.targets[line, start:stop] = targets[line, :count]
    decoder = backend.decoder(4, room=13, filling=7 - lengths)
    assert not decoder.log_probs(held, np.full_like(held, IGNORE)).any()
    got, want = decoder.fork(rows).log_probs(tokens, targets), backend.log_probs(whole)
    assert not got[targets == IGNORE].any()
    assert_close("endings", got[targets != IGNORE], want[whole.targets != IGNORE], rel=1e-6)
    # the contexts are as they were
    assert np.array_equal(decoder.fork(rows).log_probs(tokens, targets), got)


def test_the_head_scores_targets_alone_and_gives_the_same(backend: JaxBackend) -> None:
    batch = make_batch(4, 19, packed=True)
    targets = np.abs(batch.targets)
    every = backend.log_probs(batch._replace(targets=targets))
    for rate in (0.0, 0.1, 0.5):
        few = np.random.default_rng(5).random(every.shape) < rate
        scored = batch._replace(targets=np.where(few, targets, IGNORE))
        got = backend.log_probs(scored)
        assert not got[~few].any()
        assert_close(f"log-probabilities at {rate}", got, np.where(few, every, 0.0), rel=1e-6)
        assert backend.evaluate(scored) == (pytest.approx(-got.sum(), rel=1e-6), few.sum())


def test_one_program_for_each_shape_and_share_of_targets() -> None:
    # a configuration that no other test uses, as JAX keeps its programs by function and plan
    config = replace(SMALL, context=64)
    fresh = JaxBackend(config, OptimizerConfig(), Runtime(device="cpu"), Options())
    fresh.load(noisy_parameters(config))
    fresh._plan = type(fresh._plan)(SMALL.n_head, SMALL.vocab_size, chunk=977)
    programs = fresh._log_probs._cache_size
    before, counts = programs(), []
    for columns in (21, 36, 57):  # filled up to 64
        tokens = np.zeros((2, columns), np.int32)
        for count in (1, 15, 16, 17, 32):
            targets = np.full(tokens.shape, IGNORE, np.int32)
            targets.ravel()[:count] = 7
            fresh.log_probs(Batch(tokens, targets))
            counts.append(programs() - before)
    # 2 rows of 64 in shares of 16: one program for up to 16 targets, another for up to 32
    assert counts == [1, 1, 1] + [2] * 12
