"""The cache: whatever the pieces, the logits of the full forward pass."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpt_data.batch import IGNORE, Batch
from torch.fx.experimental.proxy_tensor import make_fx


# all at once; one by one; a prompt and then one by one; uneven pieces
@pytest.mark.parametrize("pieces", [[13], [1] * 13, [6] + [1] * 7, [2, 5, 1, 4]], ids=str)
@pytest.mark.parametrize("attention", ["written", "sdpa"])
def test_pieces_equal_the_whole(pieces, attention, build, batch, assert_close):
    from gpt_torchfunc.options import Options

    backend = build(options=Options(attention=attention))
    whole, decoder, start = backend.logits(batch), backend.decoder(4), 0
    for size in pieces:
        got = decoder.feed(batch.tokens[:, start : start + size])
        start += size
        assert got.dtype == np.float32
        assert_close(f"after {start}", got, whole[:, start - 1], rel=1e-5)


def test_what_is_recorded_for_a_token_is_that_of_every_token(build, batch, assert_close):
    backend = build()
    whole, decoder = backend.logits(batch), backend.decoder(4, room=14)
    decoder.feed(batch.tokens[:, :3])
    # like a CUDA graph, a trace keeps what came of values on the host: a length, a slot
    fourth = torch.from_numpy(decoder.fork(np.arange(4))._sequences.append(batch.tokens[:, 3:4])).long()
    decoder._extend_by_one = make_fx(decoder._extend_by_one)(fourth)
    for at in range(3, 13):
        assert_close(f"token {at}", decoder.feed(batch.tokens[:, at : at + 1]), whole[:, at], rel=1e-5)


def test_bfloat16_stays_near_float32(build, batch, assert_close):
    want = build().decoder(4).feed(batch.tokens)
    assert_close("logits", build(precision="bfloat16").decoder(4).feed(batch.tokens), want, rel=3e-2)


def test_two_decoders_share_nothing(build, batch):
    backend = build()
    first, second = backend.decoder(4), backend.decoder(4)
    first.feed(batch.tokens[:, :5])
    assert np.array_equal(second.feed(batch.tokens[:, :3]), backend.decoder(4).feed(batch.tokens[:, :3]))


def test_the_context_is_the_limit(build, batch):
    decoder = build().decoder(4)
    decoder.feed(batch.tokens[:, :12])
    with pytest.raises(ValueError, match=r"12 \+ 2 tokens outgrow the context of 13"):
        decoder.feed(batch.tokens[:, :2])
    decoder.feed(batch.tokens[:, :1])


@pytest.mark.parametrize("bad", [151, -1])
def test_an_id_outside_the_vocabulary_is_refused(bad, build):
    with pytest.raises(ValueError, match="outside the vocabulary of 151"):
        build().decoder(1).feed(np.array([[bad]]))


@pytest.mark.parametrize("shape", [(3, 1), (4, 0), (5, 2)], ids=str)
def test_a_wrong_shape_is_refused(shape, build):
    with pytest.raises(ValueError, match=r"expected \(4, n\)"):
        build().decoder(4).feed(np.zeros(shape, np.int32))


@pytest.mark.parametrize("attention", ["written", "sdpa"])
def test_forks_of_unequal_sequences_score_as_whole_rows(attention, build, assert_close):
    from gpt_torchfunc.options import Options

    backend = build(options=Options(attention=attention))
    # contexts of 5, 0, 3 and 7 tokens that end together; endings of 6 (up to 13), 6, 1, 4 and 2 tokens
    stream, lengths = np.random.default_rng(4), np.array([5, 0, 3, 7])
    rows, counts = np.array([3, 0, 0, 1, 2]), (6, 6, 1, 4, 2)
    held = stream.integers(0, 151, (4, 7), dtype=np.int32)
    tokens, targets = stream.integers(0, 151, (2, 5, 6), dtype=np.int32)
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
