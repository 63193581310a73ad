"""The encoder-decoder's parameters as named trees, and what it is fed.

Shapes: B rows, S source positions, T target positions, V vocabulary (padded), D width,
F feed-forward width, L layers of each stack.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Int32


class Site(IntEnum):
    """Where in a layer a dropout mask applies; layers L to 2L - 1 are the decoder's."""

    EMBEDDING = 0  # of the stack's first layer
    ATTENTION = 1
    CROSS = 2
    NETWORK = 3


@struct.dataclass
class Attention:
    """One attention and the LayerNorm after it; stacks of layers have a leading axis L."""

    qkv_weight: Float[Array, "*L D 3*D"]  # columns: queries, keys, values
    qkv_bias: Float[Array, "*L 3*D"]
    out_weight: Float[Array, "*L D D"]
    out_bias: Float[Array, "*L D"]
    norm_gain: Float[Array, "*L D"]
    norm_bias: Float[Array, "*L D"]


@struct.dataclass
class Network:
    """The two-layer network and the LayerNorm after it."""

    up_weight: Float[Array, "*L D F"]
    up_bias: Float[Array, "*L F"]
    down_weight: Float[Array, "*L F D"]
    down_bias: Float[Array, "*L D"]
    norm_gain: Float[Array, "*L D"]
    norm_bias: Float[Array, "*L D"]


@struct.dataclass
class EncoderLayer:
    """Self-attention over the source, then the network."""

    attention: Attention
    network: Network


@struct.dataclass
class DecoderLayer:
    """Causal self-attention, attention over the encoder's output, then the network."""

    attention: Attention
    cross: Attention
    network: Network


@struct.dataclass
class Parameters:
    """The whole model; each stack's arrays have a leading axis L."""

    embedding: Float[Array, "V D"]
    encoder: EncoderLayer
    decoder: DecoderLayer


class PairBatch(NamedTuple):
    """B pairs of sentences in NumPy, filled up to common lengths.

    Attributes:
        source: Token ids, the last of each sentence its end-of-text; 0 where filled up.
        source_lengths: Ids that count in each row; 0 in a row that only fills the batch up.
        target_in: End-of-text, then the sentence's ids.
        target_out: The ids, then end-of-text; ``gpt_data.batch.IGNORE`` where filled up.
    """

    source: Int32[np.ndarray, "B S"]
    source_lengths: Int32[np.ndarray, " B"]
    target_in: Int32[np.ndarray, "B T"]
    target_out: Int32[np.ndarray, "B T"]


@struct.dataclass
class Inputs:
    """A ``PairBatch`` on the device."""

    source: Int[Array, "B S"]
    source_lengths: Int[Array, " B"]
    target_in: Int[Array, "B T"]
    target_out: Int[Array, "B T"]
