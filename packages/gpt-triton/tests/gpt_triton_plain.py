"""GPT-2's forward in the plainest torch, dense masks and all logits: what the hand-written ops are held to.

It is differentiated by ``torch.func``, never by hand. Shapes: B rows, T positions, D width, H heads, K head
width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from gpt_data.batch import IGNORE, Batch
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.philox import Site, dropout_keys, dropout_mask
from torch import Tensor

Weights = Mapping[str, Tensor]


def plain_scale(shape: tuple[int, ...], key: tuple[int, int], rate: float, first_row: int = 0) -> Tensor:
    """What dropout multiplies by, drawn by the shared NumPy rule."""
    return torch.from_numpy(dropout_mask(shape, key, rate, first_row)).double() / (1.0 - rate)


def plain_attention(
    qkv: Tensor,
    n_head: int,
    starts: Tensor | None,
    weight_scale: Tensor | None = None,
) -> Tensor:
    rows, context, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    q, k, v = (x.view(rows, context, n_head, -1).transpose(1, 2) for x in qkv.split(width, 2))
    index = torch.arange(context)
    seen = (index[None, :] <= index[:, None])[None, None]
    if starts is not None:
        seen = seen & (index >= starts[:, None, :, None])
    s = (q @ k.mT / math.sqrt(width // n_head)).masked_fill(~seen, -math.inf)
    p = s.softmax(-1)
    if weight_scale is not None:
        p = p * weight_scale.to(p.dtype)
    return (p @ v).transpose(1, 2).reshape(rows, context, width)


class PlainModel:
    """The model on one batch, as functions of the weights.

    Args:
        config: Its sizes.
        batch: Tokens, targets and boundaries.
        masks: Seed and step of the dropout masks, and the batch's first row; ``None`` for no dropout.
    """

    def __init__(self, config: ModelConfig, batch: Batch, masks: tuple[int, int, int] | None = None) -> None:
        self._config = config
        self._tokens = torch.from_numpy(batch.tokens.copy()).long()
        self._targets = torch.from_numpy(batch.targets.copy()).long()
        self._positions = torch.from_numpy(batch.positions.copy()).long()
        self._starts = None if batch.segment_starts is None else torch.from_numpy(batch.segment_starts.copy())
        self._keys = dropout_keys(*masks, config.n_layer) if masks is not None and config.dropout else None

    def logits(self, w: Weights) -> Tensor:
        config = self._config
        x = w["transformer.wte.weight"][self._tokens] + w["transformer.wpe.weight"][self._positions]
        x = self._drop(x, 0, Site.EMBEDDING)
        for layer in range(config.n_layer):
            x = self._block({n.split(".", 3)[3]: v for n, v in w.items() if f".h.{layer}." in n}, x, layer)
        x = self._norm(x, w["transformer.ln_f.weight"], w["transformer.ln_f.bias"])
        return x @ w["transformer.wte.weight"].T

    def loss(self, w: Weights) -> Tensor:
        flat = self.logits(w).flatten(0, 1)
        flat = flat.float() if flat.dtype == torch.bfloat16 else flat
        return F.cross_entropy(flat, self._targets.flatten(), ignore_index=IGNORE)

    def _block(self, p: Weights, x: Tensor, layer: int) -> Tensor:
        heads = (x.shape[0], self._config.n_head, x.shape[1], x.shape[1])
        h = self._norm(x, p["ln_1.weight"], p["ln_1.bias"])
        qkv = h @ p["attn.c_attn.weight"] + p["attn.c_attn.bias"]
        h = plain_attention(qkv, self._config.n_head, self._starts, self._scale(heads, layer, Site.ATTENTION))
        h = h @ p["attn.c_proj.weight"] + p["attn.c_proj.bias"]
        x = x + self._drop(h, layer, Site.ATTENTION_RESIDUAL)
        h = self._norm(x, p["ln_2.weight"], p["ln_2.bias"])
        h = F.gelu(h @ p["mlp.c_fc.weight"] + p["mlp.c_fc.bias"], approximate="tanh")
        h = h @ p["mlp.c_proj.weight"] + p["mlp.c_proj.bias"]
        return x + self._drop(h, layer, Site.MLP_RESIDUAL)

    def _norm(self, x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], gain, bias, 1e-5)

    def _scale(self, shape: tuple[int, ...], layer: int, site: Site) -> Tensor | None:
        if self._keys is None:
            return None
        k0, k1, first_row = self._keys[layer, site].tolist()
        return plain_scale(shape, (k0, k1), self._config.dropout, first_row)

    def _drop(self, x: Tensor, layer: int, site: Site) -> Tensor:
        scale = self._scale(tuple(x.shape), layer, site)
        return x if scale is None else x * scale.to(x.dtype)
