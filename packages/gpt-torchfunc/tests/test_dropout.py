"""The masks, bit for bit those of ``gpt_trainer.philox``."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gpt_torchfunc.dropout import draw_rows, draw_tile, dropout, dropout_keys, philox, unpack
from gpt_trainer import philox as rule
from hypothesis import given
from hypothesis import strategies as st

WORD = st.integers(0, 2**32 - 1)


@given(counter=st.tuples(WORD, WORD, WORD, WORD), key=st.tuples(WORD, WORD))
def test_words_are_those_of_the_shared_rule(counter, key):
    want = rule.philox(np.array(counter, np.uint32)[:, None], key)[:, 0]
    got = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert [int(word) for word in got] == want.tolist()


def test_known_answer():
    """Random123's test vector for the counter and key of all ones."""
    ones = torch.tensor(0xFFFFFFFF)
    words = philox((ones,) * 4, (ones,) * 2)
    assert [int(word) for word in words] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@given(
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
    first_row=st.integers(0, 1000),
    n_layer=st.integers(1, 5),
)
def test_keys_are_those_of_the_shared_rule(seed, step, first_row, n_layer):
    want = rule.dropout_keys(seed, step, first_row, n_layer)
    assert np.array_equal(dropout_keys(seed, step, first_row, n_layer).numpy(), want)


# 16: whole bytes of two calls; 19: one of whose second call three columns are used; 1: one of one
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 16), (1, 257, 19)], ids=str)
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.999])
def test_masks_are_bit_equal(shape, rate):
    key, first = (0xDEADBEEF, 0x01234567), 6
    bits = draw_rows(shape, torch.tensor([*key, first]), rate)
    assert bits.shape == (shape[0] * shape[1], -(-shape[2] // 8))
    want = rule.dropout_mask(shape, key, rate, first)
    assert np.array_equal(unpack(bits, shape[2]).numpy(), want.reshape(-1, shape[2]))


def test_a_tile_is_a_part_of_the_mask():
    whole = torch.from_numpy(rule.dropout_mask((2, 3, 17, 17), (5, 7), 0.5, 9))
    for start, stop in ((5, 12), (0, 17)):
        bits = draw_tile((2, 3, 17), start, stop, torch.tensor([5, 7, 9]), 0.5)
        assert torch.equal(unpack(bits, stop), whole[:, :, start:stop, :stop])


def test_kept_values_are_scaled_and_dropped_ones_are_zero():
    x = torch.full((40, 50), 3.0)
    out = dropout(x, draw_rows((2, 20, 50), torch.tensor([1, 2, 0]), 0.25), 0.25)
    assert sorted(set(out.flatten().tolist())) == [0.0, 4.0]
    assert abs((out == 0).float().mean() - 0.25) < 0.05


def test_no_key_means_no_dropout():
    x = torch.randn(3, 4)
    assert dropout(x, None, 0.5) is x
