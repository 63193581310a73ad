"""The baseline: the same model as ``torch.nn.Transformer``, compiled, bf16 autocast, fused Adam.

torch drops attention weights and the feed-forward layer's hidden units as well, and adds a LayerNorm
after each stack; the paper does neither, and here neither is done: it only makes torch faster.

Shapes: B rows, S source positions, T target positions, D width, V vocabulary.
"""

from __future__ import annotations

import time

import numpy as np
import torch
import torch.nn.functional as F
from aiayn_jax.layers import positions
from aiayn_jax.model import init_parameters
from aiayn_jax.tree import to_named
from aiayn_workload import Case, learning_rate, make_batches, time_steps
from gpt_data.batch import IGNORE
from torch import Tensor, nn

NAMES = {
    "attention.qkv_weight": "self_attn.in_proj_weight",
    "attention.qkv_bias": "self_attn.in_proj_bias",
    "attention.out_weight": "self_attn.out_proj.weight",
    "attention.out_bias": "self_attn.out_proj.bias",
    "cross.qkv_weight": "multihead_attn.in_proj_weight",
    "cross.qkv_bias": "multihead_attn.in_proj_bias",
    "cross.out_weight": "multihead_attn.out_proj.weight",
    "cross.out_bias": "multihead_attn.out_proj.bias",
    "network.up_weight": "linear1.weight",
    "network.up_bias": "linear1.bias",
    "network.down_weight": "linear2.weight",
    "network.down_bias": "linear2.bias",
}


class Baseline(nn.Module):
    """Embedding, ``torch.nn.Transformer`` and loss."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        c = case.config
        self.width, self.smoothing = c.d_model, c.label_smoothing
        self.transformer = nn.Transformer(
            c.d_model, c.n_head, c.n_layer, c.n_layer, c.d_ff, c.dropout, batch_first=True, norm_first=False
        )
        self.transformer.encoder.norm = self.transformer.decoder.norm = None
        for layer in [*self.transformer.encoder.layers, *self.transformer.decoder.layers]:
            layer.dropout.p = layer.self_attn.dropout = 0.0
        for layer in self.transformer.decoder.layers:
            layer.multihead_attn.dropout = 0.0
        self.embedding = nn.Parameter(torch.empty(c.vocab_size, c.d_model))
        self.dropout = nn.Dropout(c.dropout)
        table = torch.from_numpy(positions(case.length, c.d_model)).float()
        self.register_buffer("table", table)
        self.register_buffer("causal", nn.Transformer.generate_square_subsequent_mask(case.length))
        self.load(to_named(init_parameters(c, 0), c))

    def load(self, values: dict[str, np.ndarray]) -> None:
        """Take over this package's initial weights."""
        self.embedding.data = torch.from_numpy(values["embedding"])
        state = {}
        for name, value in values.items():
            if name != "embedding":
                stack, layer, rest = name.split(".", 2)
                state[f"{stack}.layers.{layer}.{self._rename(stack, rest)}"] = torch.from_numpy(
                    value.T.copy()
                )
        self.transformer.load_state_dict(state)

    @staticmethod
    def _rename(stack: str, rest: str) -> str:
        if rest in NAMES:
            return NAMES[rest]
        part, field = rest.split(".")
        order = ["attention", "network"] if stack == "encoder" else ["attention", "cross", "network"]
        return f"norm{order.index(part) + 1}.{'weight' if field == 'norm_gain' else 'bias'}"

    def embed(self, ids: Tensor) -> Tensor:
        """Embedding and positions, dropped."""
        return self.dropout(F.embedding(ids, self.embedding) * self.width**0.5 + self.table[: ids.shape[1]])

    def forward(self, source: Tensor, lengths: Tensor, target_in: Tensor, target_out: Tensor) -> Tensor:
        """The smoothed mean loss."""
        padding = torch.arange(source.shape[1], device=source.device)[None] >= lengths[:, None]
        memory = self.transformer.encoder(self.embed(source), src_key_padding_mask=padding)
        out = self.transformer.decoder(
            self.embed(target_in),
            memory,
            tgt_mask=self.causal,
            tgt_is_causal=True,
            memory_key_padding_mask=padding,
        )
        logits = (out @ self.embedding.T).flatten(0, 1)
        smoothing = self.smoothing if self.training else 0.0
        return F.cross_entropy(logits, target_out.flatten(), ignore_index=IGNORE, label_smoothing=smoothing)


def run(case: Case) -> dict[str, object]:
    """Time the baseline.

    Args:
        case: Sizes, dropout, mode of the compiler.
    """
    device = torch.device("cuda" if case.device == "gpu" else "cpu")
    torch.backends.mha.set_fastpath_enabled(False)
    start = time.perf_counter()
    model = Baseline(case).to(device)
    adam = torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.98), eps=1e-9, fused=True)
    batches = [[torch.from_numpy(array) for array in batch] for batch in make_batches(case)]
    if case.device == "gpu":
        batches = [[array.pin_memory() for array in batch] for batch in batches]

    def loss_of(module: nn.Module, number: int) -> Tensor:
        arrays = [array.to(device, non_blocking=True) for array in batches[number % len(batches)]]
        with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bfloat16"):
            return module(arrays[0], arrays[1], arrays[2], arrays[3].long())

    model.eval()
    with torch.no_grad():
        nll = loss_of(model, 0).item()
    model.train()
    compiled = torch.compile(model, mode=None if case.mode == "default" else case.mode)

    def step(number: int) -> Tensor:
        for group in adam.param_groups:
            group["lr"] = learning_rate(case.config, number)
        if case.mode != "default":
            torch.compiler.cudagraph_mark_step_begin()
        loss = loss_of(compiled, number)
        loss.backward()
        adam.step()
        adam.zero_grad(set_to_none=True)
        return loss.detach()

    def wait() -> None:
        if case.device == "gpu":
            torch.cuda.synchronize()

    loss = float(step(0))
    first = time.perf_counter() - start
    timed = time_steps(step, wait, case.seconds)
    memory = torch.cuda.max_memory_allocated() if case.device == "gpu" else 0
    name = torch.cuda.get_device_name() if case.device == "gpu" else "cpu"
    versions = f"torch {torch.__version__}"
    said = {"first_step_s": first, "nll": nll, "loss": loss, "peak_bytes": memory}
    return timed | said | {"device": name, "versions": versions}
