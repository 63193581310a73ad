"""The cache: whatever the pieces, the logits of the full forward pass."""

from __future__ import annotations

import numpy as np
import pytest


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
