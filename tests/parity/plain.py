"""A plain PyTorch GPT-2 that trains on the same weights, batches and learning rates as a run of ours.

It is written as one writes a GPT-2 today: an ``nn.Module``, autograd, autocast, SDPA, fused AdamW,
optionally ``torch.compile``. Its loss curve is what ours must follow, its speed what there is to beat.

    python plain.py RUN OUT [--compile] [--steps N]

RUN is the run folder of any backend: data, sizes, seed and learning rates are read from what it wrote.
OUT becomes a folder with a ``metrics.jsonl`` of the same form. Needs a GPU.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gpt_data.batch import IGNORE
from gpt_data.cache import cached_dataset
from gpt_data.loader import BatchLoader
from gpt_trainer.backend import OptimizerConfig
from gpt_trainer.metrics import read_metrics
from gpt_trainer.model_config import ModelConfig
from gpt_trainer.parameters import init_parameters
from gpt_trainer.record import read_record
from gpt_trainer.run_folder import read_plan
from torch import Tensor, nn


class Block(nn.Module):
    """One pre-norm block under Hugging Face's names."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_head = config.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(d, 3 * d), "c_proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, 4 * d), "c_proj": nn.Linear(4 * d, d)})

    def forward(self, x: Tensor) -> Tensor:
        """Attention, then MLP, each added to the stream."""
        rows, time_, d = x.shape
        qkv = self.attn["c_attn"](self.ln_1(x)).view(rows, time_, 3, self.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn["c_proj"](mixed.transpose(1, 2).reshape(rows, time_, d))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class Plain(nn.Module):
    """GPT-2; the vocabulary is padded to a multiple of 128, as the head's product needs it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size
        padded = -(-config.vocab_size // 128) * 128
        blocks = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        parts = {
            "wte": nn.Embedding(padded, config.d_model),
            "wpe": nn.Embedding(config.context, config.d_model),
            "h": blocks,
            "ln_f": nn.LayerNorm(config.d_model),
        }
        self.transformer = nn.ModuleDict(parts)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Mean loss."""
        t = self.transformer
        x = t["wte"](tokens) + t["wpe"](torch.arange(tokens.shape[1], device=tokens.device))
        for block in t["h"]:
            x = block(x)
        logits = (t["ln_f"](x) @ t["wte"].weight.T).flatten(0, 1)
        columns = torch.arange(logits.shape[1], device=logits.device)
        logits = logits.masked_fill(columns >= self.vocab_size, -torch.inf)
        return F.cross_entropy(logits.float(), targets.flatten(), ignore_index=IGNORE)

    @torch.no_grad()
    def take_over(self, parameters: dict[str, np.ndarray]) -> None:
        """Copy canonical parameters: ``nn.Linear`` keeps its weight transposed."""
        own = dict(self.named_parameters())
        for name, value in parameters.items():
            tensor = torch.from_numpy(value)
            if value.ndim == 2 and ".wte." not in name and ".wpe." not in name:
                tensor = tensor.T
            own[name].zero_()
            own[name][: len(tensor)] = tensor


def optimizer_of(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW; matrices and embeddings decay."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim == 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, betas=betas, eps=config.epsilon, fused=True)


def train(
    model: nn.Module, loader: BatchLoader, rates: list[float], config: OptimizerConfig, bfloat16: bool
) -> list[dict[str, float]]:
    """One line of metrics per step; all rows of a step go through at once."""
    optimizer = optimizer_of(model, config)
    lines = []
    for step, rate in enumerate(rates):
        began = time.perf_counter()
        batch = loader.batch(step)
        tokens, targets = (torch.from_numpy(v.astype(np.int64)).cuda() for v in (batch.tokens, batch.targets))
        with torch.autocast("cuda", torch.bfloat16, enabled=bfloat16):
            loss = model(tokens, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        value = loss.item()
        seconds = time.perf_counter() - began
        lines.append(
            {
                "step": step + 1,
                "loss": value,
                "seconds": seconds,
                "tokens_per_second": tokens.numel() / seconds,
            }
        )
    return lines


def main() -> None:
    """Follow a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int)
    given = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    plan = read_plan(given.run)
    assert plan is not None, f"{given.run} holds no run"
    config = read_record(plan, str(given.run)).config
    rates = [line["lr"] for line in read_metrics(given.run / "metrics.jsonl") if "lr" in line][: given.steps]
    dataset = cached_dataset(config.data.data, config.data.tokenizer, cache_dir=given.out)
    seed = config.runtime.seed
    loader = BatchLoader(dataset.train, rows=config.rows, context=config.model.context, seed=seed)
    sizes = config.model_config(dataset.vocab_size)
    model = Plain(sizes).cuda()
    model.take_over(init_parameters(sizes, seed))
    compiled = torch.compile(model) if given.compile else model
    lines = train(compiled, loader, rates, config.optimizer_config(), config.runtime.precision == "bfloat16")
    lines[-1]["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
