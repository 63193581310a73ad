"""The masks, bit for bit those of ``gpt_trainer.philox``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpt_torchfunc.dropout import dropout, dropout_keys, dropout_mask, dropout_mask_tile, philox, unpack
from gpt_trainer import philox as rule
from hypothesis import given
from hypothesis import strategies as st

WORD = st.integers(0, 2**32 - 1)


@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_words_are_those_of_the_shared_rule(counter, key):
    want = rule.philox(np.array(counter, np.uint32)[:, None], key)[:2, 0]
    got = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert [int(word) for word in got] == want.tolist()


def test_known_answer():
    """Random123's test vector for the counter and key of all ones."""
    ones = torch.tensor(0xFFFFFFFF)
    first, second = philox((ones,) * 4, (ones,) * 2)
    assert (int(first), int(second)) == (0x408F276D, 0x41C83B0E)


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    micro_batch=st.integers(0, 1000),
    n_layer=st.integers(1, 5),
)
def test_keys_are_those_of_the_shared_rule(seed, step, micro_batch, n_layer):
    want = rule.dropout_keys(seed, step, micro_batch, n_layer)
    assert np.array_equal(dropout_keys(seed, step, micro_batch, n_layer).numpy(), want)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 3, 17, 17), (1, 257, 129)], ids=str)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_masks_are_bit_equal(shape, rate):
    key = (0xDEADBEEF, 0x01234567)
    got = dropout_mask(torch.Size(shape), torch.tensor(key), rate)
    assert np.array_equal(got.numpy(), rule.dropout_mask(shape, key, rate))


def test_a_tile_is_a_part_of_the_mask():
    shape, key = (2, 3, 17, 17), torch.tensor([5, 7])
    whole = dropout_mask(torch.Size(shape), key, 0.5)
    bits = dropout_mask_tile(shape, 5, 12, key, 0.5)  # seven queries, of which each has a bit
    assert bits.shape == (2, 3, 1, 12)
    assert torch.equal(unpack(bits, 7), whole[:, :, 5:12, :12])
    several = unpack(dropout_mask_tile(shape, 0, 17, key, 0.5), 17)
    assert torch.equal(several, whole)


def test_kept_values_are_scaled_and_dropped_ones_are_zero():
    x = torch.full((40, 50), 3.0)
    out = dropout(x, torch.tensor([1, 2]), 0.25)
    assert sorted(set(out.flatten().tolist())) == [0.0, 4.0]
    assert abs((out == 0).float().mean() - 0.25) < 0.05


def test_no_key_means_no_dropout():
    x = torch.randn(3, 4)
    assert dropout(x, None, 0.5) is x
