"""gpt-torchfunc's ops under the referee's names, differentiated as the package does: by ``torch.func``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gpt_data.batch import IGNORE
from gpt_torchfunc import loss, model
from gpt_torchfunc.dropout import dropout, dropout_mask
from gpt_torchfunc.model import Block, Inputs, Parameters, Plan
from torch import Tensor

Arrays = dict[str, np.ndarray]
Op = Callable[[Arrays], Arrays]


def plant(error: str) -> None:
    """Break the model in one place: the matrix must see it."""
    layer_norm, linear, attention_mask = model.layer_norm, model.linear, model.attention_mask
    if error == "epsilon":
        model.EPSILON = 1e-3
    elif error == "gain":
        model.layer_norm = lambda x, gain, bias: layer_norm(x, 1.01 * gain, bias)
    elif error == "bias":
        model.linear = lambda x, weight, bias: linear(x, weight, 0.0 * bias)
    elif error == "mask":
        model.attention_mask = lambda inputs, plan: attention_mask(inputs, plan).roll(1, 1)
    else:
        raise ValueError(f"unknown error {error!r}")


def ops(precision: str, device: str, options: list[str]) -> dict[str, Op]:
    """Every op of the package as a function of the case's arrays."""
    dtype, where = getattr(torch, precision), "cuda" if device == "gpu" else "cpu"
    attention_kind = dict(option.split("=") for option in options).get("attention", "written")

    def tensors(inputs: Arrays, *names: str, kind: torch.dtype = dtype) -> dict[str, Tensor]:
        return {name: torch.from_numpy(inputs[name]).to(where, kind) for name in names}

    def ids(inputs: Arrays, name: str) -> Tensor:
        return torch.from_numpy(inputs[name].astype(np.int64)).to(where)

    def answers(
        name: str, function: Callable[..., Tensor], given: dict[str, Tensor], d_out: Tensor
    ) -> Arrays:
        out, pull_back = torch.func.vjp(lambda tree: function(**tree), given)
        (grads,) = pull_back(d_out.to(out.dtype))
        found = {f"d_{each}": grad for each, grad in grads.items()} | {name: out}
        return {each: value.detach().float().cpu().numpy() for each, value in found.items()}

    def upstream(inputs: Arrays, name: str = "d_y") -> Tensor:
        return torch.from_numpy(inputs[name]).to(where)

    def layer_norm(inputs: Arrays) -> Arrays:
        given = tensors(inputs, "x") | tensors(inputs, "gain", "bias", kind=torch.float32)
        return answers("y", lambda x, gain, bias: model.layer_norm(x, gain, bias), given, upstream(inputs))

    def gelu(inputs: Arrays) -> Arrays:
        return answers("y", model.gelu, tensors(inputs, "x"), upstream(inputs))

    def linear(inputs: Arrays) -> Arrays:
        given = tensors(inputs, "x") | tensors(inputs, "weight", "bias", kind=torch.float32)
        return answers("y", lambda x, weight, bias: model.linear(x, weight, bias), given, upstream(inputs))

    def attention(inputs: Arrays) -> Arrays:
        width, rate = inputs["qkv"].shape[-1] // 3, float(inputs["rate"][0])
        starts = ids(inputs, "segment_starts")
        plan = Plan(int(inputs["n_head"][0]), 1, dtype, attention_kind, rate)
        packed = Inputs(starts, starts, starts if starts.any() else None)
        key = ids(inputs, "key") if rate else None
        # the projection is the identity, so that the block's own input is qkv
        eye = torch.eye(3 * width, device=where)
        block = Block(*[eye.new_zeros(1)] * len(Block._fields))._replace(
            qkv_weight=eye, qkv_bias=eye.new_zeros(3 * width)
        )
        # the model writes attention out when there is dropout, and then it needs the mask
        mask = model.attention_mask(packed, plan if not rate else plan_written(plan))

        def function(qkv: Tensor) -> Tensor:
            return model.self_attention(block, qkv, mask, plan, key)

        return answers("out", function, tensors(inputs, "qkv"), upstream(inputs, "d_out"))

    def plan_written(plan: Plan) -> Plan:
        return Plan(plan.n_head, plan.vocab_size, plan.dtype, "written", plan.dropout)

    def cross_entropy(inputs: Arrays) -> Arrays:
        x, wte = tensors(inputs, "x")["x"], tensors(inputs, "wte", kind=torch.float32)["wte"]
        targets = ids(inputs, "targets")
        vocab = len(wte)
        plan = Plan(1, vocab, dtype, chunk=16 * vocab)  # chunks of 16 tokens: several, the last one short
        weight = torch.tensor(1.0 / int((targets != IGNORE).sum()), device=where)
        _, d_x, d_wte = loss.head_loss_and_gradients(x, wte, targets, plan, weight)
        nll = loss.token_nll(x, wte.to(dtype), targets, vocab)
        found = {"nll": nll, "d_x": d_x, "d_wte": d_wte}
        return {name: value.detach().float().cpu().numpy() for name, value in found.items()}

    def embedding(inputs: Arrays) -> Arrays:
        starts = np.arange(inputs["tokens"].shape[1]) - inputs["positions"]
        tokens = ids(inputs, "tokens")
        packed = Inputs(tokens, tokens, torch.from_numpy(starts.astype(np.int64)).to(where))
        given = tensors(inputs, "wte", "wpe", kind=torch.float32)
        plan = Plan(1, len(given["wte"]), dtype)

        def function(wte: Tensor, wpe: Tensor) -> Tensor:
            none = Block(*[wte.new_zeros(1)] * len(Block._fields))
            return model.embed(Parameters(wte, wpe, none, wte[0], wte[0]), packed, plan)

        return answers("x", function, given, upstream(inputs, "d_x"))

    def drop(inputs: Arrays) -> Arrays:
        key, rate = ids(inputs, "key"), float(inputs["rate"][0])
        found = answers("y", lambda x: dropout(x, key, rate), tensors(inputs, "x"), upstream(inputs))
        mask = dropout_mask(torch.Size(inputs["x"].shape), key, rate)
        return found | {"mask": mask.float().cpu().numpy()}

    return {
        "layer_norm": layer_norm,
        "gelu": gelu,
        "linear": linear,
        "attention": attention,
        "cross_entropy": cross_entropy,
        "embedding": embedding,
        "dropout": drop,
    }
