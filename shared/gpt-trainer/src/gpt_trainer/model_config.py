"""The sizes of a GPT-2, and the four that OpenAI published."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST_LAYERS = 10_000
"""Far beyond any that was trained: a number that is mistyped, or damaged in a file, is refused at
once, before the parameters of each block are listed."""


@dataclass(frozen=True)
class ModelSizes:
    """The sizes of a GPT-2 but for its vocabulary, which is the tokenizer's.

    Attributes:
        n_layer: Number of blocks, L.
        n_head: Attention heads per block, H.
        d_model: Width of the residual stream, D; a multiple of n_head.
        context: Tokens of a row, T; a model has as many positions.
        dropout: Rate on the embedding, the attention weights and both residual branches, in training.

    Raises:
        ValueError: If a size is not positive, ``n_layer`` is above ``MOST_LAYERS``, ``d_model`` is not a
            multiple of ``n_head``, or ``dropout`` lies outside ``[0, 1)``.
    """

    n_layer: int = 12
    n_head: int = 12
    d_model: int = 768
    context: int = 1024
    dropout: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "d_model", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not positive")
        if self.n_layer > MOST_LAYERS:
            raise ValueError(f"n_layer={self.n_layer} is above {MOST_LAYERS}")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_head={self.n_head}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} is not in [0, 1)")


@dataclass(frozen=True)
class ModelConfig(ModelSizes):
    """The sizes that fix a GPT-2's parameters and function.

    Attributes:
        vocab_size: Token ids, V: rows of the embedding, shared with the output head.

    Raises:
        ValueError: As ``ModelSizes``, or if there are no ids.
    """

    vocab_size: int = 50257

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vocab_size < 1:
            raise ValueError(f"vocab_size={self.vocab_size} is not positive")

    @property
    def head_width(self) -> int:
        """Width K of one attention head."""
        return self.d_model // self.n_head


MODEL_PRESETS = {
    "gpt2-124m": ModelConfig(n_layer=12, n_head=12, d_model=768),
    "gpt2-350m": ModelConfig(n_layer=24, n_head=16, d_model=1024),
    "gpt2-774m": ModelConfig(n_layer=36, n_head=20, d_model=1280),
    "gpt2-1.5b": ModelConfig(n_layer=48, n_head=25, d_model=1600),
}
