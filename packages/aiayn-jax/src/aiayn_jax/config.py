"""Sizes of the encoder-decoder, and the paper's by name.

Shapes: V vocabulary, D width, F width of the feed-forward layer, L layers of each stack.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from math import prod

from gpt_trainer.model_config import MOST_LAYERS

MOST_BEAM = 1024
"""Far beyond any that helps: one that is mistyped is refused before the training that it comes behind."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the model; its vocabulary is the tokenizer's.

    Attributes:
        n_layer: Layers of the encoder, and as many of the decoder.
        n_head: Attention heads of a layer.
        d_model: Width of the residual stream.
        d_ff: Width of the feed-forward layer.
        dropout: Dropout rate in training.
        label_smoothing: Share of the target that is spread over the vocabulary.
        longest: Most tokens of a sentence; longer pairs are left out of training.

    References:
        Vaswani et al. 2017, table 3 and section 5.4.
    """

    n_layer: int = 6
    n_head: int = 8
    d_model: int = 512
    d_ff: int = 2048
    dropout: float = 0.1
    label_smoothing: float = 0.1
    longest: int = 256


@dataclass(frozen=True)
class TransformerConfig(Sizes):
    """Everything that decides the parameters' shapes and what training adds to them.

    ``d_model`` is an even multiple of ``n_head``. Dropout is on the sum of embeddings and positions and on
    each sub-layer's output: the paper names these places and no others, so attention weights are not dropped.

    Attributes:
        vocab_size: Token ids, one vocabulary for both languages.

    Raises:
        ValueError: Naming the field, its value and what is allowed.
    """

    vocab_size: int = field(kw_only=True)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_layer", "n_head", "d_model", "d_ff", "longest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")
        if self.n_layer > MOST_LAYERS:
            raise ValueError(f"n_layer={self.n_layer} is above {MOST_LAYERS}")
        if self.d_model % self.n_head or self.d_model % 2:
            raise ValueError(f"d_model={self.d_model} is not an even multiple of n_head={self.n_head}")
        for name in ("dropout", "label_smoothing"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name}={getattr(self, name)} is not in [0, 1)")


PRESETS = {
    "demo": Sizes(n_layer=2, n_head=4, d_model=64, d_ff=256, dropout=0.0, longest=64),
    "small": Sizes(n_layer=3, n_head=4, d_model=256, d_ff=1024, dropout=0.3),
    "base": Sizes(n_layer=6, n_head=8, d_model=512, d_ff=2048, dropout=0.1),
    "big": Sizes(n_layer=6, n_head=16, d_model=1024, d_ff=4096, dropout=0.3),
}
"""Sizes by name. ``base`` and ``big`` are the paper's (65M and 213M parameters at about 37,000 ids);
``small`` suits corpora of some ten thousand pairs, ``demo`` a CPU."""


def preset(name: str, vocab_size: int, **changes: int | float) -> TransformerConfig:
    """The sizes of ``PRESETS[name]`` for a vocabulary.

    Raises:
        ValueError: If the name is unknown, or a field is out of range.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} is not one of {', '.join(PRESETS)}")
    sizes = replace(PRESETS[name], **changes)  # type: ignore[arg-type]
    return TransformerConfig(vocab_size=vocab_size, **asdict(sizes))


def parameter_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Every parameter's name and shape, in the order of initialisation; weights are ``(in, out)``."""
    d, f = config.d_model, config.d_ff
    norm = {"norm_gain": (d,), "norm_bias": (d,)}
    attention = {
        "qkv_weight": (d, 3 * d),
        "qkv_bias": (3 * d,),
        "out_weight": (d, d),
        "out_bias": (d,),
    } | norm
    network = {"up_weight": (d, f), "up_bias": (f,), "down_weight": (f, d), "down_bias": (d,), **norm}
    sub_layers = {
        "encoder": {"attention": attention, "network": network},
        "decoder": {"attention": attention, "cross": attention, "network": network},
    }
    shapes: dict[str, tuple[int, ...]] = {"embedding": (config.vocab_size, d)}
    for stack, parts in sub_layers.items():
        for layer in range(config.n_layer):
            for part, arrays in parts.items():
                shapes |= {f"{stack}.{layer}.{part}.{name}": shape for name, shape in arrays.items()}
    return shapes


def parameter_count(config: TransformerConfig) -> int:
    """Number of parameters; the embedding, which is the head as well, counted once."""
    return sum(map(prod, parameter_shapes(config).values()))
