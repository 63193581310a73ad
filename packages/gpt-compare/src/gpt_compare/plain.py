"""GPT-2 as one writes it in PyTorch today: modules, autograd, SDPA, ``cross_entropy``.  No kernel of ours.

Its loss curve is what the backends must follow, its speed what there is to beat.
Shapes: B rows, n new tokens, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gpt_data.batch import IGNORE
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import Parameters, padded_vocabulary
from jaxtyping import Float, Int64
from torch import Tensor, nn


class Block(nn.Module):
    """One pre-norm block under Hugging Face's names."""

    def __init__(self, config: ModelConfig, bias: bool) -> None:
        super().__init__()
        d = config.d_model
        self.n_head = config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(d, bias=bias), nn.LayerNorm(d, bias=bias)
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(d, 3 * d, bias=bias), "c_proj": nn.Linear(d, d, bias=bias)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(d, 4 * d, bias=bias), "c_proj": nn.Linear(4 * d, d, bias=bias)}
        )

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Attention, then MLP, each added to the stream."""
        rows, time, d = x.shape
        qkv = self.attn["c_attn"](self.ln_1(x)).view(rows, time, 3, self.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, H, T, K] each
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](mixed.transpose(1, 2).reshape(rows, time, d))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class Plain(nn.Module):
    """The whole model and its loss.

    Args:
        config: The model's sizes; dropout is not made.
        bias: Whether linear maps and norms have biases; without them it is the model that nanoGPT trains.
    """

    def __init__(self, config: ModelConfig, bias: bool = True) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        self.transformer = nn.Module()
        self.transformer.wte = nn.Embedding(padded_vocabulary(config.vocab_size), config.d_model)
        self.transformer.wpe = nn.Embedding(config.context, config.d_model)
        self.transformer.h = nn.ModuleList([Block(config, bias) for _ in range(config.n_layer)])
        self.transformer.ln_f = nn.LayerNorm(config.d_model, bias=bias)

    def hidden(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        """What the head reads."""
        t: Any = self.transformer
        x = t.wte(tokens) + t.wpe(torch.arange(tokens.shape[1], device=tokens.device))  # [B, T, D]
        for block in t.h:
            x = block(x)
        return t.ln_f(x)  # type: ignore[no-any-return]

    def forward(
        self, tokens: Int64[Tensor, "B T"], targets: Int64[Tensor, "B T"], reduction: str = "sum"
    ) -> Float[Tensor, "..."]:
        """Negative log-likelihoods of the targets in nats: their sum, or [B*T] without ``reduction``."""
        t: Any = self.transformer
        logits = (self.hidden(tokens) @ t.wte.weight.T).flatten(0, 1)  # [B*T, V padded]
        columns = torch.arange(logits.shape[1], device=logits.device)
        logits = logits.masked_fill(columns >= self.vocab_size, -torch.inf)
        return F.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORE, reduction=reduction)

    @torch.no_grad()
    def take_over(self, parameters: Parameters) -> None:
        """Copy canonical parameters; the vocabulary's padding becomes zeros."""
        for name, own in self.named_parameters():
            value = torch.tensor(_turned(name, parameters[name]))
            own.zero_()
            own[: len(value)] = value

    def named(self) -> dict[str, Tensor]:
        """Its parameters by canonical name."""
        return dict(self.named_parameters())

    def feeder(self) -> Callable[[Int64[Tensor, "B n"]], Float[Tensor, "B V"]]:
        """Nothing is cached: all of the text goes through the model for each new token."""
        seen: list[Tensor] = []

        def feed(tokens: Int64[Tensor, "B n"]) -> Float[Tensor, "B V"]:
            seen.append(tokens)
            t: Any = self.transformer
            last = self.hidden(torch.cat(seen, 1))[:, -1]
            return last @ t.wte.weight.T  # type: ignore[no-any-return]

        return feed

    def canonical(self, name: str, value: Float[Tensor, "..."]) -> Float[np.ndarray, "..."]:
        """A parameter, or what has its shape, in canonical layout."""
        rows = self.vocab_size if name.endswith("wte.weight") else len(value)
        return np.ascontiguousarray(_turned(name, value.detach()[:rows].float().cpu().numpy()))


def _turned(name: str, value: np.ndarray) -> np.ndarray:
    """Between the canonical [in, out] and the [out, in] of ``nn.Linear``; the same both ways."""
    return value.T if value.ndim == 2 and ".wte." not in name and ".wpe." not in name else value
